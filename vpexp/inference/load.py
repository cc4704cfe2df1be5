"""One way in for every model and everything that can predict; what a backend needs is imported only when it is asked for."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from vpexp.errors import CheckpointError
from vpexp.inference.exported import ExportedModel, find_exported, is_exported_reference
from vpexp.inference.predictor import Predictor

if TYPE_CHECKING:
    from vpexp.models.sam import Sam


def load_model(
    name: str,
    weights: "str | PathLike[str]" = "auto",
    image_size: int | None = None,
    cache_dir: "str | PathLike[str] | None" = None,
) -> "Sam":
    """Build a model by its name and load its weights; in eval mode, on the CPU, float32.

    Args:
        name: see ``list_models``.
        weights: ``auto`` (the official or packaged file), ``random`` (drawn from torch's current seed; each module says from
            what distribution) or a path. A model without a file, sam_debug, always draws the same weights with ``auto``.
        image_size: the side of the square model input, a multiple of 16; None: the model's own.
        cache_dir: where downloaded weights lie; None: in vpexp's cache folder.

    Raises:
        ConfigError: the name is unknown or the image size does not fit.
        WeightsError: the weights are missing, damaged, or of another model.
    """
    from vpexp.config.schema import ModelConfig
    from vpexp.inference.torch_model import load_sam
    from vpexp.models.registry import get_model_info

    info = get_model_info(name)
    size = info.image_size if image_size is None else image_size
    settings = ModelConfig(name=name, _target_=info.target, image_size=size, weights=str(weights))
    folder = None if cache_dir is None else Path(cache_dir)
    return load_sam(settings, seed=None if settings.weights == "random" else 0, weights_dir=folder)


def load_predictor(
    source: "str | PathLike[str] | ExportedModel | Sam",
    *,
    device: str = "cpu",
    output_dir: str | PathLike[str] = "outputs",
    threads: int | None = None,
    multimask: str | None = None,
) -> Predictor:
    """Load a predictor.

    Args:
        source: an exported model (a folder or either of its files: OpenVINO IR, ONNX, INT8), a ``.ckpt`` file, a run
            folder, ``latest`` (what was trained last under ``output_dir``), a model's name (its own weights), or a
            ``Sam`` module.
        device: where it runs: ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` for torch, OpenVINO's name of a device (``cpu``, ``gpu``) for an IR.
        output_dir: where runs lie.
        threads: CPU threads of an exported model; None: OMP_NUM_THREADS, else its library's own choice.
        multimask: which prompts are answered by the best of three masks: ``auto`` (one point alone), ``always`` or ``never``;
            None: as the model was trained or exported, ``auto`` where it does not say.

    Raises:
        CheckpointError: nothing is there, it is damaged, or there is no such device.
        WeightsError: see ``load_model``.
    """
    if isinstance(source, str | PathLike) and is_exported_reference(Path(source).expanduser()):
        source = find_exported(Path(source))
    if not isinstance(source, ExportedModel):
        return _load_torch(source, device, Path(output_dir), multimask)
    if source.format == "onnx":
        from vpexp.inference.graph_predictor import OnnxPredictor

        if device.lower() != "cpu":
            raise CheckpointError(f"device={device}: an ONNX model runs on the CPU here; export OpenVINO IR for others")
        return OnnxPredictor(source, threads=threads, multimask=multimask)
    from vpexp.inference.graph_predictor import OpenvinoPredictor

    return OpenvinoPredictor(source, threads=threads, device=device.upper(), multimask=multimask)


def _load_torch(source: "str | PathLike[str] | Sam", device: str, output_dir: Path, multimask: str | None) -> Predictor:
    from vpexp.config.trust import refuse_foreign
    from vpexp.devices import read_device
    from vpexp.inference.torch_model import find_checkpoint, load_checkpoint_model, read_checkpoint
    from vpexp.inference.torch_predictor import TorchPredictor
    from vpexp.models.registry import list_models
    from vpexp.models.sam import Sam

    parts = None
    if isinstance(source, Sam):
        sam = source.eval()
    elif str(source) in list_models():
        sam = load_model(str(source))
    else:
        checkpoint = read_checkpoint(find_checkpoint(str(source), output_dir))
        refuse_foreign({"model": checkpoint.cfg.model}, (), checkpoint.path)
        sam = load_checkpoint_model(checkpoint)
        multimask, parts = multimask or checkpoint.multimask, checkpoint.instances
    predictor = TorchPredictor(sam.to(read_device(device)), multimask or "auto")
    if parts is not None:
        predictor.instances = parts.build_model(predictor.device)
    return predictor
