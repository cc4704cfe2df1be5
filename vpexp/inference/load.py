"""One way in for everything that can predict; what a backend needs is imported only when it is asked for."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from vpexp.errors import CheckpointError
from vpexp.inference.exported import ExportedModel, find_exported, is_exported_reference
from vpexp.inference.predictor import Predictor
from vpexp.runtime import find_cache_dir

if TYPE_CHECKING:
    from vpexp.models.sam import Sam


def load_predictor(
    source: "str | PathLike[str] | Sam",
    *,
    device: str = "cpu",
    output_dir: str | PathLike[str] = "outputs",
    threads: int | None = None,
) -> Predictor:
    """Load a predictor.

    Args:
        source: an exported model (a folder or either of its files: OpenVINO IR, ONNX, INT8), a ``.ckpt`` file, a run
            folder, ``latest`` (what was trained last under ``output_dir``), a model's name (its own weights), or a
            ``Sam`` module.
        device: where it runs: ``cpu`` or ``cuda`` for torch, OpenVINO's name of a device (``cpu``, ``gpu``) for an IR.
        output_dir: where runs lie.
        threads: CPU threads of an exported model; None: OMP_NUM_THREADS, else its library's own choice.

    Raises:
        CheckpointError, WeightsError: see ``find_exported``, ``find_checkpoint`` and ``load_model``.
    """
    if isinstance(source, str | PathLike) and is_exported_reference(Path(source).expanduser()):
        return open_exported(find_exported(Path(source)), device=device, threads=threads)
    return _load_torch(source, device, Path(output_dir))


def open_exported(model: ExportedModel, *, device: str = "cpu", threads: int | None = None) -> Predictor:
    """Open an exported model with the library that its files are made for.

    Raises:
        CheckpointError: the files are damaged, or there is no such device.
    """
    if model.format == "onnx":
        from vpexp.inference.onnx_predictor import OnnxPredictor

        if device.lower() != "cpu":
            raise CheckpointError(f"device={device}: an ONNX model runs on the CPU here; export OpenVINO IR for others")
        return OnnxPredictor(model, threads=threads)
    from vpexp.inference.openvino_predictor import OpenvinoPredictor

    return OpenvinoPredictor(model, threads=threads, device=device.upper())


def _load_torch(source: "str | PathLike[str] | Sam", device: str, output_dir: Path) -> Predictor:
    import torch

    from vpexp.config.trust import refuse_foreign
    from vpexp.inference.torch_model import find_checkpoint, load_checkpoint_model, read_checkpoint
    from vpexp.inference.torch_predictor import TorchPredictor
    from vpexp.models.registry import list_models
    from vpexp.models.sam import Sam
    from vpexp.models.weights import load_model

    if isinstance(source, Sam):
        sam = source.eval()
    elif str(source) in list_models():
        sam = load_model(str(source))
    else:
        checkpoint = read_checkpoint(find_checkpoint(str(source), output_dir))
        refuse_foreign({"model": checkpoint.cfg.model}, (), checkpoint.path)
        sam = load_checkpoint_model(
            checkpoint, checkpoint.cfg.model, seed=int(checkpoint.cfg.seed), cache_dir=find_cache_dir()
        )
    return TorchPredictor(sam.to(torch.device(device)))
