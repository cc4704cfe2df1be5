"""Which nodes of the exported graphs must not be quantized, found by what they are connected to.

Names of nodes change with the version of the converter; what hangs on which port does not.
"""

from collections.abc import Iterable
from typing import Any

from vpexp.deploy.preprocessing import PREFIX
from vpexp.inference.graph_predictor import PROMPT_INPUTS

ANGLES = ("Sin", "Cos")
ATTENTION = ("ScaledDotProductAttention", "Softmax")
CONVOLUTIONS = ("Convolution", "GroupConvolution")
HEAD_AXES = 4
SEE_PIXELS = 2
"""Convolutions, one after another, by which the prompter comes from pixels to its cells."""


def find_precise_nodes(graph: Any) -> list[str]:
    """Find the nodes that stay in full precision, in the order of the graph.

    - What fits an image of any size into the encoder's square: pixel values would be rounded before they are seen.
    - The encoder's convolutions before its first attention: they see pixels, whose range differs much from image to
      image, they hold hardly any weights, and most of what INT8 does to the embedding happens in them.
    - What makes the angles of the positional encoding: they are large, and rounding turns points to other places.
    - What is computed from weights alone: it is computed once, when the model is loaded.
    - Products of heads with heads: small, and OpenVINO 2026.4 cannot compile some of them with rounded inputs.
    - What only an earlier mask passes through: it is hardly ever given, so calibration knows nothing of its range.
    - The decoder's upscaling: a twentieth of its weights, and the outline of a mask lies where the logits that it makes are
      near 0.
    - The prompter's last convolutions and what comes after them: peaks that are rounded are as high as their neighbours, and
      boxes would move by whole pixels. Its first convolutions, which see pixels, as the encoder's.

    Args:
        graph: an ``openvino.Model``, of the image encoder, the decoder or the prompter.
    """
    nodes = graph.get_ordered_ops()
    precise = {node.get_friendly_name() for node in nodes if node.get_friendly_name().startswith(PREFIX)}
    precise |= _find_first_convolutions(graph)
    precise |= _find_above(node for node in nodes if node.get_type_name() in ANGLES)
    precise |= _find_constant(graph)
    precise |= _find_head_products(graph)
    precise |= _find_mask_branch(graph)
    precise |= _find_upscaling(graph)
    precise |= _find_peaks(graph)
    ends = ("Constant", "Parameter", "Result")
    names = [node.get_friendly_name() for node in nodes if node.get_type_name() not in ends]
    return [name for name in names if name in precise]


def _find_first_convolutions(graph: Any) -> set[str]:
    """Find the convolutions that the encoder's first attention is computed from."""
    if not any("images" in port.get_names() for port in graph.inputs):
        return set()
    nodes = graph.get_ordered_ops()
    first = next((node for node in nodes if node.get_type_name() in ATTENTION), None)
    above = set() if first is None else _find_above([first])
    return {
        name for node in nodes if (name := node.get_friendly_name()) in above and node.get_type_name() in CONVOLUTIONS
    }


def _find_constant(graph: Any) -> set[str]:
    """Find the operations that no input of the graph has a part in."""
    return {node.get_friendly_name() for node in graph.get_ordered_ops()} - _find_dependent(graph)


def _find_head_products(graph: Any) -> set[str]:
    """Find the products of two tensors of four axes (prompt, head, token, channel) that both depend on the inputs."""
    dependent = _find_dependent(graph)
    return {
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "MatMul"
        and all(
            port.get_partial_shape().rank.get_length() == HEAD_AXES
            and port.get_source_output().get_node().get_friendly_name() in dependent
            for port in node.inputs()
        )
    }


def _find_dependent(graph: Any) -> set[str]:
    """Name all nodes that an input of the graph has a part in."""
    return _find_below(port.get_node() for port in graph.inputs)


def _find_mask_branch(graph: Any) -> set[str]:
    """Find what depends on ``mask_input`` before the image comes in."""
    ports = {name: port.get_node() for port in graph.inputs for name in port.get_names()}
    if "mask_input" not in ports:
        return set()
    return _find_below([ports["mask_input"]]) - _find_below(_find_maps(graph))


def _find_maps(graph: Any) -> list[Any]:
    """Find the inputs that the encoder gives: those that no prompt and no pixels come by."""
    others = {"images", *PROMPT_INPUTS}
    return [port.get_node() for port in graph.inputs if not port.get_names() & others]


def _find_upscaling(graph: Any) -> set[str]:
    """Find what the mask is computed from and the predicted IoU is not, without the perceptron that makes its kernel."""
    ports = {name: port.get_node() for port in graph.outputs for name in port.get_names()}
    if "iou_predictions" not in ports:
        return set()
    head = _find_above([ports["upscaled_masks"], ports["low_res_masks"]]) - _find_above([ports["iou_predictions"]])
    activations = [
        node for node in graph.get_ordered_ops() if node.get_type_name() == "Gelu" and node.get_friendly_name() in head
    ]
    # What enlarges the masks hangs on their size alone; the perceptron hangs on the image, as everything else does.
    of_image = _find_below(_find_maps(graph))
    return (head - of_image) | head & (_find_above(activations) | _find_below(activations))


def _find_peaks(graph: Any) -> set[str]:
    """Find the convolutions that no other is computed from, what is computed from them, and what sees pixels first."""
    if not any("boxes" in port.get_names() for port in graph.outputs):
        return set()
    convolutions = {
        node.get_friendly_name(): node for node in graph.get_ordered_ops() if node.get_type_name() in CONVOLUTIONS
    }
    last = {name: node for name, node in convolutions.items() if not convolutions.keys() & _find_below([node])}
    ports = {name: port.get_node() for port in graph.inputs for name in port.get_names()}
    of_pixels = _find_below([ports["images"]]) - _find_below(_find_maps(graph))
    first = {
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if node.get_friendly_name() in of_pixels and len(convolutions.keys() & _find_above([node])) <= SEE_PIXELS
    }
    return last.keys() | _find_below(last.values()) | first


def _find_above(nodes: Iterable[Any]) -> set[str]:
    """Name all nodes that these are computed from, themselves included."""
    waiting, seen = list(nodes), set[str]()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in seen:
            seen.add(node.get_friendly_name())
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return seen


def _find_below(nodes: Iterable[Any]) -> set[str]:
    """Name all nodes that are computed from these, without themselves."""
    waiting, seen = list(nodes), set[str]()
    while waiting:
        for port in waiting.pop().outputs():
            for target in port.get_target_inputs():
                node = target.get_node()
                if node.get_friendly_name() not in seen:
                    seen.add(node.get_friendly_name())
                    waiting.append(node)
    return seen
