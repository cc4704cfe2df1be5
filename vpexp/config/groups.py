"""Where the configuration groups lie, what they offer, and the help that lists them."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from vpexp.config.schema import Config
from vpexp.errors import ConfigError

START = """\
vpexp fine-tunes and tests Segment Anything models on your own images.

  python -m vpexp [group=option ...] [key=value ...] [flags]

Examples
  python -m vpexp experiment=quickstart
        the whole chain on drawn images, in minutes
  python -m vpexp stage=data data=auto data.root=my/dataset
        what is in a data set, and what is wrong with it
  python -m vpexp model=sam_tiny_vit data=auto data.root=my/dataset
        fine-tune on it; the format is found by looking
  python -m vpexp stage=test
        test what was trained last, on its own data
  python -m vpexp stage=export
        write it as OpenVINO IR
  python -m vpexp stage=ptq
        quantize the last export to INT8
  python -m vpexp stage=predict source=photos/
        masks for photos
  python -m vpexp stage=demo source=photos/
        label photos by clicks, on a local page
  python -m vpexp stage=pipeline data=auto data.root=my/dataset
        train, test, export, quantize, test: one table
  python -m vpexp -m optimizer.lr=1e-5,3e-5 data.batch_size=1,2
        a sweep: every combination
"""

TEMPLATE = """\
{start}
Groups (group=option; the first line of its file says what an option is)
{groups}

Flags
  --cfg job [--resolve]     print the configuration instead of running: all keys, with their values
  -m, --multirun            run all combinations of values that are separated by commas
  --config-dir DIR          add groups of your own: DIR/data/mine.yaml becomes data=mine
  -cp DIR -cn NAME          run the configuration DIR/NAME.yaml, as a run folder's config.yaml
  --version, --hydra-help   vpexp's version; Hydra's own flags
"""


def find_conf_folder() -> Path:
    """Find the folder of vpexp's own groups: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"vpexp's configuration folder is missing beside {package}; install vpexp again")


def list_groups(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """List all groups and their options: ``{group: {option: file}}``, where earlier folders win."""
    groups: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for file in sorted([*folder.glob("*/*.yaml"), *folder.glob("*/*/*.yaml")]):
            group = file.parent.relative_to(folder).as_posix()
            groups.setdefault(group, {}).setdefault(file.stem, file)
    return groups


def find_file(config_path: str, folders: Sequence[Path]) -> Path | None:
    """Find the file of an option, as ``data/coco``, or of a primary configuration, as ``config``."""
    candidates = (folder / f"{config_path}.yaml" for folder in folders)
    return next((file for file in candidates if file.is_file()), None)


def format_help(folders: Sequence[Path]) -> str:
    """Format the help, with the groups of all ``folders``."""
    order = ["experiment", "debug", *(field.name for field in fields(Config))]
    groups = list_groups(folders)
    lines = []
    for group in sorted(groups, key=lambda group: order.index(group) if group in order else len(order)):
        lines.append(f"  {group}")
        lines += [f"    {option:<29} {_read_first_words(file)}" for option, file in groups[group].items()]
    return TEMPLATE.format(start=START, groups="\n".join(lines))


def _read_first_words(file: Path) -> str:
    """The comment that opens the file, without the command in it."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").partition(": python -m")[0]
        if not line.startswith("#"):
            break
    return ""
