"""The OpenVINO form of the predictor: IRs in full or half precision, and INT8; and the process's one ``openvino.Core``.

Each Core gives the thread that uses its CPU plugin a stack for signal handlers, and takes it away when it goes. Where
two of them do not go in the reverse order of their coming, the stack that is put back is one that is gone, and the
next signal (a data worker that ends, Ctrl-C) kills the process. So there is one Core, and it stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from vpexp.errors import CheckpointError
from vpexp.inference.exported import ExportedModel, read_metadata
from vpexp.inference.graph_predictor import (
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    ENCODER_INPUTS,
    ENCODER_OUTPUTS,
    Arrays,
    GraphPredictor,
)
from vpexp.runtime import find_thread_limit


class OpenvinoPredictor(GraphPredictor):
    """Runs an exported model by OpenVINO.

    In float32, whatever the processor prefers: on CPUs with bfloat16 OpenVINO's default would move mask outlines.

    Args:
        model: the files.
        threads: CPU threads; None: OMP_NUM_THREADS, else OpenVINO's own choice.
        device: OpenVINO's name of the device.

    Raises:
        CheckpointError: the files are damaged, have other ports than vpexp writes, or there is no such device.
    """

    def __init__(self, model: ExportedModel, *, threads: int | None = None, device: str = "CPU") -> None:
        metadata = read_metadata(model)
        core = get_core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        threads = threads or find_thread_limit()
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        encoder = _read_graph(core, model.encoder, ENCODER_INPUTS, ENCODER_OUTPUTS)
        # What is embedded here has the model's size already, so what would fit it in falls away.
        encoder.reshape([1, 3, metadata.image_size, metadata.image_size])
        decoder = _read_graph(core, model.decoder, DECODER_INPUTS, DECODER_OUTPUTS)
        super().__init__(
            model,
            metadata,
            partial(_run, _compile(core, encoder, device, settings), ENCODER_OUTPUTS),
            partial(_run, _compile(core, decoder, device, settings), DECODER_OUTPUTS, in_place=True),
        )


def _read_graph(core: Any, file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    try:
        graph = core.read_model(file)
    except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
        line = " ".join(str(error).split())[-200:]
        raise CheckpointError(
            f"{file} cannot be read by OpenVINO: damaged, or its .bin is of another file ({line})"
        ) from error
    for wanted, ports in ((inputs, graph.inputs), (outputs, graph.outputs)):
        names = {name for port in ports for name in port.get_names()}
        if not set(wanted) <= names:
            missing = ", ".join(sorted(set(wanted) - names))
            raise CheckpointError(f"{file} has no port {missing}: it was not written by stage=export")
    return graph


def _compile(core: Any, graph: Any, device: str, settings: dict[str, Any]) -> Any:
    try:
        return core.compile_model(graph, device, settings)
    except Exception as error:  # as above
        line = " ".join(str(error).split())[-200:]
        known = ", ".join(name.lower() for name in core.available_devices)
        raise CheckpointError(
            f"OpenVINO cannot run the model on device={device.lower()}; devices here: {known} ({line})"
        ) from error


def _run(graph: Any, outputs: tuple[str, ...], inputs: Arrays, *, in_place: bool = False) -> Arrays:
    """Run a graph; ``in_place`` gives outputs that hold until it runs again, and saves copying full-size logits."""
    results = graph(inputs, share_outputs=in_place)
    return {name: results[name] for name in outputs}


@cache
def get_core() -> Any:
    """Get the process's ``openvino.Core``; its CPU plugin is loaded."""
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin before anybody else's
    return core


@contextmanager
def lend_core() -> Iterator[Any]:
    """Let a library that makes Cores of its own (NNCF: one for each model it compiles) get this one meanwhile."""
    import openvino

    core, usual = get_core(), (openvino.Core, openvino.compile_model)
    openvino.Core = lambda *_: core
    openvino.compile_model = lambda model, device_name="CPU", config=None: core.compile_model(
        model, device_name, config or {}
    )
    try:
        yield core
    finally:
        openvino.Core, openvino.compile_model = usual
