"""The ONNX form of the predictor, run by onnxruntime."""

from functools import partial
from typing import Any

from vpexp.inference.exported import ExportedModel, _open_session, read_metadata
from vpexp.inference.graph_predictor import DECODER_OUTPUTS, ENCODER_OUTPUTS, Arrays, GraphPredictor


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


def _run(session: Any, outputs: tuple[str, ...], inputs: Arrays) -> Arrays:
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))
