"""Torch models as configurations describe them, and checkpoints: find, read, put back together with the frozen parts.

A checkpoint is a Lightning checkpoint whose ``state_dict`` holds only what was trained, and whose key ``vpexp`` says what
belongs to it: the configuration (YAML text), the class names, and the hash of every part that was left out, or of what was left out
of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vpexp.config.saved import read_yaml, refuse_interpolations
from vpexp.config.schema import PARTS, ModelConfig
from vpexp.console import log_line
from vpexp.errors import CheckpointError, ConfigError
from vpexp.files import replacing
from vpexp.inference.exported import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from vpexp.inference.torch_instances import InstanceParts
from vpexp.models.registry import get_model_info, list_models
from vpexp.models.sam import Sam
from vpexp.models.tuning import ENCODER, Tuning, add_lora, find_trained, merge_lora
from vpexp.models.weights import check_finite, compute_state_hash, find_unusable, load_weights, resolve_weights
from vpexp.registry import load_target
from vpexp.runfolder import LATEST, RunFolder, find_latest

PREFIX = "sam."  # the name of the model inside the LightningModule
_TO_GO_ON = {"optimizer_states", "lr_schedulers", "loops", "callbacks"}  # what Lightning saves beside the weights


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: where it was read.
        cfg: the configuration of the run that wrote it.
        state: tensors of the trained parts, by the model's own names.
        frozen: hash of each part that is not in it, or of the rest of one that is in it in part.
        categories: class names of the data it was trained on.
        can_go_on: whether it also holds what a training needs to be resumed.
        instances: what finds and names objects without prompts; None where none was learnt.
    """

    path: Path
    cfg: DictConfig
    state: dict[str, Tensor]
    frozen: dict[str, str]
    categories: tuple[str, ...]
    can_go_on: bool
    instances: InstanceParts | None = None

    @property
    def model(self) -> ModelConfig:
        """The section ``model`` of its configuration."""
        known = {field.name for field in fields(ModelConfig)}
        return ModelConfig(**{str(name): value for name, value in self.cfg.model.items() if name in known})

    @property
    def multimask(self) -> str:
        """Which prompts its model answers by the best of three masks; an older version's by token 0 alone, as it was trained."""
        return str(self.cfg.get("prompt", {}).get("multimask", "never"))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that it holds."""
        return tuple(sorted({name.split(".")[0] for name in self.state}))


def build_identity(
    sam: Sam, cfg: DictConfig, tuning: Tuning, left_out: Sequence[str], categories: Sequence[str]
) -> dict[str, Any]:
    """Build what a checkpoint says of itself; of the parts in ``left_out`` it holds nothing, or only what learns."""
    trained = find_trained(sam, tuning)
    return {
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "frozen": {
            part: compute_state_hash(getattr(sam, part), without=trained if part == ENCODER else ())
            for part in left_out
        },
        "categories": list(categories),
    }


def find_checkpoint(reference: str, output_dir: Path) -> Path:
    """Find the file that ``checkpoint=`` means: ``latest``, a file, or a folder.

    Of a run's folder it is the best epoch, of a pipeline's that of its training, of a sweep's that of its best job, of a folder
    of runs that of its latest training.

    Raises:
        CheckpointError: there is none.
    """
    if reference == LATEST:
        folder = find_latest(output_dir, "train")
        if folder is None:
            raise CheckpointError(
                f"nothing was trained yet under {output_dir}: run stage=train first, or give checkpoint=<file>, "
                "or checkpoint=null to take the pretrained model"
            )
        return _find_best(folder)
    path = Path(reference).expanduser()
    if path.is_dir():
        return _find_best(_find_training(RunFolder(path.resolve())))
    if not path.is_file():
        raise CheckpointError(f"checkpoint={reference} does not exist")
    return path.resolve()


def _find_training(folder: RunFolder) -> RunFolder:
    """Find the training that a folder stands for, which most folders are themselves."""
    if latest := find_latest(folder.path, "train"):
        log_line(f"of the runs in {folder.path}, its latest training is taken: {latest.path}")
        folder = latest
    record = folder.read_run_json()
    if record.get("sweep") is not None:
        number = record.get("best_job")
        if number is None:
            raise CheckpointError(
                f"{folder.path} is a sweep, and names no best job: give one of its jobs, checkpoint={folder.path}/0"
            )
        folder = RunFolder(folder.path / str(number))
        record = folder.read_run_json()
        log_line(f"of the sweep, its best job is taken: {folder.path} ({record.get('job_name')})")
    return RunFolder(folder.path / "train") if record.get("stage") == "pipeline" else folder


def _find_best(folder: RunFolder) -> Path:
    best = folder.read_run_json().get("best_checkpoint")
    candidates: list[Path] = [folder.checkpoints / Path(best).name] if best else []  # of this run, whatever it says
    candidates += [*sorted(folder.checkpoints.glob("epoch_*.ckpt"), reverse=True), folder.last_checkpoint]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"{folder.path} holds no checkpoint (looked for checkpoints/epoch_*.ckpt and last.ckpt)")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that vpexp wrote.

    Raises:
        CheckpointError: the file is damaged, or not one of vpexp's.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:
        # torch's own messages are long, and tell how to load unsafely.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): damaged, or no file of tensors and plain values"
        ) from error
    if not isinstance(content, Mapping) or "vpexp" not in content:
        raise CheckpointError(
            f"{path} is no checkpoint of vpexp; weights in the official layout are given as model.weights=<path>"
        )
    try:
        identity = content["vpexp"]
        cfg = read_yaml(identity["config"], "its configuration")
        refuse_interpolations(cfg, "its configuration")
        checkpoint = Checkpoint(
            path=path,
            cfg=cfg,
            state={name.removeprefix(PREFIX): value for name, value in content["state_dict"].items()},
            frozen=dict(identity["frozen"]),
            categories=tuple(identity["categories"]),
            can_go_on=content.keys() >= _TO_GO_ON,
            instances=_read_instances(path, identity.get("instances")),
        )
        _check(checkpoint)
    except ConfigError as error:
        raise CheckpointError(f"{path} is no whole checkpoint of vpexp: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no whole checkpoint of vpexp ({type(error).__name__}): made by another version, or changed since"
        ) from error
    return checkpoint


def _read_instances(path: Path, content: Mapping[str, Any] | None) -> InstanceParts | None:
    """Read what finds and names objects; that of another version is left out, and said so."""
    if not content:
        return None
    parts = InstanceParts.from_content(content)
    if parts is None:
        log_line(
            f"{path}: its prompter is of another version of vpexp and is left out, its decoder is used; a training from this "
            "checkpoint learns a new one",
            style="yellow",
        )
    return parts


def add_instances(path: Path, parts: InstanceParts) -> None:
    """Write what finds and names objects into a checkpoint, beside what it holds."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    content["vpexp"]["instances"] = parts.to_content()
    with replacing(path) as draft:
        torch.save(content, draft)


def _check(checkpoint: Checkpoint) -> None:
    """Check what a checkpoint says of itself.

    Raises:
        ConfigError: something in it is not as vpexp writes it.
    """
    model, seed = checkpoint.cfg.get("model"), checkpoint.cfg.get("seed")
    kinds = {"name": str, "_target_": str, "image_size": int}
    if not isinstance(model, DictConfig) or not all(isinstance(model.get(name), kind) for name, kind in kinds.items()):
        raise ConfigError("its configuration names no model")
    if not MIN_IMAGE_SIZE <= model.image_size <= MAX_IMAGE_SIZE or not isinstance(seed, int):
        raise ConfigError(f"model.image_size={model.image_size} seed={seed}")
    for part in (*checkpoint.frozen, *checkpoint.parts):
        if part not in PARTS:
            raise ConfigError(f"it names a part {part!r}; there are {', '.join(PARTS)}")
    if not all(isinstance(name, str) for name in (*checkpoint.frozen.values(), *checkpoint.categories)):
        raise ConfigError("hashes and class names must be text")
    if not all(isinstance(tensor, Tensor) for tensor in checkpoint.state.values()):
        raise ConfigError("its state_dict holds more than tensors")
    if unusable := find_unusable(checkpoint.state):
        raise ConfigError(unusable)


def load_checkpoint_model(
    checkpoint: Checkpoint, settings: ModelConfig | None = None, *, weights_dir: Path | None = None
) -> Sam:
    """Build the model of a checkpoint: frozen parts from the model's own weights, the rest from the checkpoint.

    Args:
        checkpoint: from ``read_checkpoint``.
        settings: the section ``model`` where the user changed it; None: the checkpoint's own.
        weights_dir: where downloaded weights lie; None: in vpexp's cache folder.

    Raises:
        CheckpointError: the model does not fit, or its frozen parts are not those that the checkpoint was trained with.
    """
    settings = settings or checkpoint.model
    saved_name = checkpoint.cfg.model.name
    if settings.name != saved_name:
        raise CheckpointError(
            f"{checkpoint.path} is of model {saved_name}, not {settings.name}: leave out model=, it comes with the checkpoint"
        )
    sam = load_sam(settings, seed=int(checkpoint.cfg.seed), weights_dir=weights_dir)
    _refuse_former(checkpoint, sam)
    apply_checkpoint(sam, checkpoint)
    for part, state_hash in checkpoint.frozen.items():
        held = {name.removeprefix(f"{part}.") for name in checkpoint.state}
        if compute_state_hash(getattr(sam, part), without=held) != state_hash:
            raise CheckpointError(
                f"{checkpoint.path} was trained with another {part} than model.weights={settings.weights} gives "
                f"(it had model.weights={checkpoint.cfg.model.weights}, seed={checkpoint.cfg.seed}, "
                f"model.image_size={checkpoint.cfg.model.image_size})"
            )
    merge_lora(sam)
    return sam


def _refuse_former(checkpoint: Checkpoint, sam: Sam) -> None:
    """Refuse a checkpoint that was trained on weights that vpexp no longer has.

    Raises:
        CheckpointError: with the weights' hash and the version that had them.
    """
    name = checkpoint.model.name
    weights = get_model_info(name).weights if name in list_models() else None
    if weights is None or weights.former is None:
        return
    shapes = {f"image_encoder.{key}": value.shape for key, value in sam.image_encoder.state_dict().items()}
    has_other_shapes = any(shapes.get(key) != value.shape for key, value in checkpoint.state.items() if key in shapes)
    if has_other_shapes or checkpoint.frozen.get("image_encoder") == weights.former.encoder_hash:
        raise CheckpointError(
            f"{checkpoint.path} was trained on the former weights of {name} ({weights.filename}, sha256 "
            f"{weights.former.sha256}), which vpexp {weights.former.until} had: use it with that version, or train again"
        )


def apply_checkpoint(sam: Sam, checkpoint: Checkpoint) -> None:
    """Load what a checkpoint holds: parts, each of them whole unless a hash says what the rest is, and LoRA beside their layers.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    for part in checkpoint.parts:
        state = {
            name.removeprefix(f"{part}."): value
            for name, value in checkpoint.state.items()
            if name.startswith(f"{part}.")
        }
        try:
            add_lora(getattr(sam, part), state)
            rest = getattr(sam, part).state_dict() if part in checkpoint.frozen else {}
            getattr(sam, part).load_state_dict(rest | state)
            check_finite(state, checkpoint.path)
        except (RuntimeError, AttributeError) as error:
            line = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{checkpoint.path} does not fit the model's {part}: {line}") from error


def load_sam(settings: ModelConfig, *, seed: int | None, weights_dir: Path | None = None) -> Sam:
    """Build a model and load its weights; in eval mode, on the CPU, float32.

    Args:
        settings: the section ``model``. ``_target_`` may be a function of the user's own that takes ``image_size`` and
            returns a ``Sam``.
        seed: fixes random weights, and leaves torch's own numbers as they were; None draws from these.
        weights_dir: where downloaded weights lie; None: in vpexp's cache folder.

    Raises:
        ConfigError: ``_target_`` cannot be imported, or does not build a ``Sam``.
        WeightsError: the weights are missing, damaged, or of another model.
    """
    build = load_target("model._target_", settings._target_)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        sam: Any = build(image_size=settings.image_size)
    if not isinstance(sam, Sam):
        raise ConfigError(f"model._target_={settings._target_} returned a {type(sam).__name__}, not a Sam")
    weights = str(settings.weights)  # of a checkpoint, which may hold anything
    if settings.name in list_models():
        path = resolve_weights(settings.name, weights, weights_dir)
    elif weights == "auto":
        raise ConfigError(f"model.weights=auto: vpexp knows no file for model {settings.name}; give a path or random")
    else:
        path = None if weights == "random" else Path(weights)
    if path is not None:
        load_weights(sam, path)
    return sam.eval()
