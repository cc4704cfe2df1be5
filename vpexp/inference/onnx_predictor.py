"""The ONNX form of the predictor, run by onnxruntime."""

from functools import partial
from pathlib import Path
from typing import Any

from vpexp.environment import find_thread_limit
from vpexp.errors import CheckpointError
from vpexp.inference.exported import ExportedModel, read_metadata
from vpexp.inference.graph_predictor import DECODER_OUTPUTS, ENCODER_OUTPUTS, Arrays, GraphPredictor

ERRORS_ONLY = 3  # onnxruntime's level of severity


class OnnxPredictor(GraphPredictor):
    """Runs an exported model by onnxruntime, on the CPU.

    Args:
        model: the files.
        threads: CPU threads; None: OMP_NUM_THREADS, else onnxruntime's own choice.

    Raises:
        CheckpointError: the files are damaged or not vpexp's, or onnxruntime is not installed.
    """

    def __init__(self, model: ExportedModel, *, threads: int | None = None) -> None:
        metadata = read_metadata(model)
        super().__init__(
            model,
            metadata,
            partial(_run, _open_session(model.encoder, threads), ENCODER_OUTPUTS),
            partial(_run, _open_session(model.decoder, threads), DECODER_OUTPUTS),
        )


def read_onnx_properties(file: Path) -> dict[str, str]:
    """Read the metadata of an ONNX file."""
    return dict(_open_session(file, 1, optimize=False).get_modelmeta().custom_metadata_map)


def _open_session(file: Path, threads: int | None, *, optimize: bool = True) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(f"{file} needs onnxruntime: pip install 'vpexp[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    threads = threads or find_thread_limit()
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} cannot be read by onnxruntime: {line}") from error


def _run(session: Any, outputs: tuple[str, ...], inputs: Arrays) -> Arrays:
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))
