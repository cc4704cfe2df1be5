"""One clear line for everything that can be wrong with a configuration, with the closest right name."""

import dataclasses
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from vpexp.config.groups import find_file, list_groups

TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
UNKNOWN_KEY_ERRORS = (ConfigAttributeError, ConfigKeyError)
FREE_SECTIONS = ("optimizer", "scheduler", "callbacks", "metrics")
# What Hydra says, and what vpexp says instead.
_COMPOSITION_LINES = (
    (
        r"Ambiguous value for argument '([^=']+)=(.*)'\n",
        "{0}={1} names several values: add -m to try each of them, or quote it as one: '{0}=\"{1}\"'",
    ),
    (r"Sweep parameters '(.+)' requires --multirun", "{0} names several values: add -m to try each of them"),
    (r"Could not delete from config. '(.+)' does not exist", "unknown key '{0}', nothing to delete"),
    (r"Could not append to config. An item is already at '(.+)'", "{0} is there already: write it without '+'"),
    (r"Multiple values for (\S+)\. ", "{0} is chosen twice: write {0}=... once, without '+'"),
)
_Explainer = Callable[[Any, Sequence[str], Sequence[Path]], str]
LOWEST_LIKENESS = 0.55
LEAF_WEIGHT = 0.75


def explain(error: BaseException, overrides: Sequence[str], folders: Sequence[Path]) -> str | None:
    """Explain in one line what the user has to change; None for an error that is not about the configuration.

    Args:
        error: what Hydra, OmegaConf or the YAML reader raised.
        overrides: what the user asked for, as ``data.batch_size=2``.
        folders: where groups are looked for, vpexp's own among them.
    """
    # OmegaConf's own, of keys for a section that is null.
    if isinstance(error, AttributeError) and "full_key:" in str(error):
        error = AssertionError(str(error))
    for kind, explain_kind in _EXPLAINERS:
        if isinstance(error, kind):
            return " ".join(explain_kind(error, overrides, folders).split())
    return None


def describe_type(hint: Any) -> str:
    """Describe a type of the schema in words: ``a whole number or null``."""
    if get_origin(hint) in (Union, types.UnionType):
        arguments = [argument for argument in get_args(hint) if argument is not int or float not in get_args(hint)]
        return " or ".join(describe_type(argument) for argument in arguments)
    if get_origin(hint) is list:
        return "a list, as [a,b]"
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "a section of keys"
    return TYPE_WORDS.get(hint, str(hint))


def _explain_composition(error: Any, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    text = str(error)
    cause = error.__cause__ or error.__context__
    file = re.match(r"In '([^']+)': \w+ raised while composing config", text)
    where = f"{find_file(file[1], folders) or file[1]}: " if file else ""
    if isinstance(cause, UNKNOWN_KEY_ERRORS):
        return where + _explain_unknown_key(cause, text, folders)
    if isinstance(cause, OmegaConfBaseException):
        return where + _explain_omegaconf(cause, overrides, folders)
    if found := re.match(r"Could not override '(.+)'\.", text):
        return _explain_no_group(found[1], folders)
    for pattern, line in _COMPOSITION_LINES:
        if found := re.match(pattern, text):
            return line.format(*found.groups())
    return _first_sentences(text)


def _explain_unknown_key(cause: OmegaConfBaseException, hydras_words: str, folders: Sequence[Path]) -> str:
    found = re.match(r"Could not override '(.+)'\.\nTo append to your config use \+(.+)", hydras_words)
    key = found[1] if found and "." in found[1] else str(cause.full_key)
    groups = list_groups(folders)
    if key in groups:
        return _explain_no_group(key, folders)
    right = [*list_keys(cause.parent_node._get_root()), *groups]  # noqa: SLF001
    closest = find_closest(key, right)
    line = f"unknown key '{key}'" + (f"; did you mean '{closest}'?" if closest else "")
    if found and key.split(".")[0] in FREE_SECTIONS:
        return f"{line} (to add a new key: +{found[2]})"
    if not closest:
        line += f" (there are: {', '.join(str(name) for name in cause.parent_node if name != 'hydra')})"
    return line


def _explain_no_group(name: str, folders: Sequence[Path]) -> str:
    if name in list_groups(folders):
        return (
            f"{name}=... chooses a group, but a saved configuration has no groups: change its values one by one "
            f"({name}.key=value), or start anew, without -cp and -cn"
        )
    return f"unknown group '{name}'" + format_suggestion(name, list_groups(folders))


def _explain_missing_config(error: Any, _overrides: Sequence[str], folders: Sequence[Path]) -> str:
    text = str(error)
    if found := re.search(r"Could not (?:find|load) '(.+)/([^/']+)'", text):
        group, option = found.groups()
        options = list(error.options or list_groups(folders).get(group, ()))
        parent = re.match(r"In '(.+?)': ", text)
        file = find_file(parent[1], folders) if parent and parent[1] != "config" else None
        where = f"{file}: " if file else ""
        return f"{where}{group} has no option '{option}'{format_suggestion(option, options)} (there are: {', '.join(sorted(options))})"
    if found := re.match(r"Cannot find primary config '(.+?)'", text):
        return f"no configuration '{found[1]}.yaml' in {folders[0]} (-cp says in which folder, -cn which file)"
    if found := re.search(r"config directory '(.+?)'", text):
        return f"no folder {found[1]} (-cp names the folder of a configuration)"
    return _first_sentences(text)


def _explain_syntax(error: Any, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    found = re.match(r"Error parsing override '(.*)'\n", str(error))
    override = error.override or (found[1] if found else next(iter(overrides), ""))
    key, equals, value = override.partition("=")
    if not equals:
        is_stage = override in list_groups(folders).get("stage", ())
        return f"cannot read '{override}': write {f'stage={override}' if is_stage else 'key=value'}"
    if not re.fullmatch(r"[+~]{0,2}[\w@./:-]+", key):
        return f"cannot read '{override}': '{key}' is no key"
    return f"cannot read '{override}': a value with special characters needs quotes: {_quote(key, value)}"


def _explain_omegaconf(error: Any, _overrides: Sequence[str], folders: Sequence[Path]) -> str:
    if isinstance(error, UNKNOWN_KEY_ERRORS):
        return _explain_unknown_key(error, "", folders)
    if error.full_key in list_groups(folders):
        return _explain_no_group(error.full_key, folders)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not given: write {error.full_key}=..."
    if isinstance(error, InterpolationResolutionError):
        return f"cannot resolve {error.full_key or 'a value'}: {_get_first_line(error)}"
    return _explain_value(error)


def _explain_value(error: Any) -> str:
    line = _get_first_line(error)
    if line.startswith("Merge error"):
        return "must hold keys, as name: value"
    hints = get_type_hints(error.object_type) if dataclasses.is_dataclass(error.object_type) else {}
    if isinstance(error, ValidationError) and error.key in hints:
        value = "null" if error.value is None else error.value
        return f"{error.full_key}={value}: must be {describe_type(hints[error.key])}"
    return f"{error.full_key}: {line}" if error.full_key else line


def _get_first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0]


def _explain_yaml(error: Any, _overrides: Sequence[str], _folders: Sequence[Path]) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{mark.name}, line {mark.line + 1}: {problem}" if mark else f"broken YAML: {problem}"


def _explain_plain(error: Any, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    groups = list_groups(folders)
    if "Config group override must be a string" in str(error):
        for override in overrides:
            group, _, value = override.partition("=")
            if group in groups and value not in groups[group]:
                return f"{override}: choose an option of {group} ({', '.join(sorted(groups[group]))})"
    if isinstance(error, UnicodeDecodeError):
        broken = next((file for file in _list_files(groups) if not _is_text(file)), "a configuration file")
        return f"{broken}: is not text in UTF-8"
    if isinstance(error, AssertionError):  # OmegaConf asserts that no section on the way to a key is null
        return f"cannot set a key inside a section that is null, in: {' '.join(overrides)}"
    return _first_sentences(str(error))


def _list_files(groups: dict[str, dict[str, Path]]) -> list[Path]:
    return [file for options in groups.values() for file in options.values()]


def _is_text(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _quote(key: str, value: str) -> str:
    escaped = value.replace('"', '\\"')
    return f"'{key}=\"{escaped}\"'"


def _first_sentences(text: str) -> str:
    """Hydra's own words, without its search path and web addresses."""
    return re.split(r"\n?(Config search path|Search path|See https?):", text)[0].strip() or "cannot be read"


_EXPLAINERS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], _Explainer], ...] = (
    (MissingConfigException, _explain_missing_config),
    (OverrideParseException, _explain_syntax),
    (ConfigCompositionException, _explain_composition),
    (OmegaConfBaseException, _explain_omegaconf),
    (yaml.YAMLError, _explain_yaml),
    ((HydraException, ValueError, AssertionError, OSError), _explain_plain),
)


SYNONYMS = {
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "batch": "batch_size",
    "bs": "batch_size",
    "workers": "num_workers",
    "path": "root",
    "dir": "root",
    "wd": "weight_decay",
    "imgsz": "image_size",
    "img_size": "image_size",
    "device": "accelerator",
}
"""How other libraries call a key of ours: the last part of its name."""


def list_keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """List all dotted keys of a configuration, sections included, in their order."""
    if not isinstance(cfg, DictConfig) or cfg._is_none() or cfg._is_missing() or cfg._is_interpolation():  # noqa: SLF001
        return
    for key in map(str, cfg):
        full_key = f"{prefix}{key}"
        yield full_key
        if not (OmegaConf.is_interpolation(cfg, key) or OmegaConf.is_missing(cfg, key)):
            yield from list_keys(cfg[key], f"{full_key}.")


def find_closest(wrong: str, right: Iterable[str]) -> str | None:
    """Find the dotted name that is most like ``wrong``, as a whole or in its last part; None where none is like it.

    A name that other libraries have for one of ours is taken for that, if there is one.
    """
    candidates = [name for name in right if not wrong.startswith(f"{name}.")]
    usual = SYNONYMS.get(wrong.rpartition(".")[2])
    if same := [name for name in candidates if name.rpartition(".")[2] == usual]:
        return max(same, key=lambda name: _compute_likeness(wrong, name))
    if not wrong.startswith("hydra"):
        candidates = [name for name in candidates if not name.startswith("hydra")]
    # Of equals, the one that lies less deep.
    ranked = [(_compute_likeness(wrong, name), -name.count("."), name) for name in candidates]
    likeness, _, closest = max(ranked, key=lambda rank: rank[:2], default=(0.0, 0, ""))
    return closest if likeness >= LOWEST_LIKENESS else None


def _compute_likeness(wrong: str, name: str) -> float:
    """From 0 (nothing in common) to 1 (equal); the last part counts most, where it lies a little."""
    (wrong_section, _, wrong_leaf), (section, _, leaf) = wrong.rpartition("."), name.rpartition(".")
    likeness = SequenceMatcher(a=wrong_leaf, b=leaf).ratio()
    if not (wrong_section or section):
        return likeness
    return LEAF_WEIGHT * likeness + (1 - LEAF_WEIGHT) * SequenceMatcher(a=wrong_section, b=section).ratio()


def format_suggestion(wrong: str, right: Iterable[str]) -> str:
    """Format the end of an error line: ``; did you mean 'data.root'?``, or nothing."""
    closest = find_closest(wrong, right)
    return f"; did you mean '{closest}'?" if closest else ""
