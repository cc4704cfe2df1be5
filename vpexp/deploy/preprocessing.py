"""Let an encoder graph take an image of any size: it is resized and padded inside, as vpexp does outside.

Clients differ in how they shrink an image (OpenVINO's Model API does not smooth) and in what they pad with, and both
move masks. A client that finds an input of any size leaves it to the graph.
"""

from typing import Any

import numpy as np

from vpexp.data.geometry import MEAN, STD
from vpexp.data.interface import FIT, STRETCH

PREFIX = "fit_image/"
"""What the names of these nodes begin with."""


def accept_any_size(model: Any, image_size: int, resize: str = FIT) -> Any:
    """Put nodes before ``images`` that make a normalised image [1, 3, H, W] the square [1, 3, S, S], padded or stretched.

    An image that has the square's size, or that needs no resizing, passes unchanged to the bit. Others are resized as
    ``resize_image`` does it, by Pillow's smoothing filter along each axis and rounded to whole pixel values.

    Args:
        model: an ``openvino.Model`` with the one input [1, 3, S, S].
        image_size: S.
        resize: how an image becomes the square, see ``compute_resized_size``.

    Returns:
        A new ``openvino.Model`` with the input [1, 3, ?, ?].
    """
    import openvino
    from openvino import opset13 as ops

    size = np.int64(image_size)
    images = ops.parameter([1, 3, -1, -1], np.float32, name="images")
    shape_2 = ops.gather(ops.shape_of(images, "i64"), ops.constant([2, 3], np.int64), ops.constant(0, np.int64))
    resized_2 = ops.constant([size, size], np.int64) if resize == STRETCH else _compute_fit(shape_2, size)

    # Both choices must have one shape, whatever came: one that does not fit is cut and padded to what it is resized to.
    start_2, step_2, axes_2 = (ops.constant(values, np.int64) for values in ([0, 0], [1, 1], [2, 3]))
    unchanged = _pad(ops.slice(images, start_2, resized_2, step_2, axes_2), ops.subtract(resized_2, shape_2))
    fits = ops.reduce_logical_and(ops.equal(resized_2, shape_2), ops.constant([0], np.int64), keep_dims=False)
    fitted = ops.select(fits, unchanged, _resize(images, resized_2))

    padded = _pad(fitted, ops.subtract(ops.constant([size, size], np.int64), resized_2))
    square = ops.reshape(padded, ops.constant([1, 3, size, size], np.int64), special_zero=False)

    replaced = model.inputs[0].get_node()
    for target in replaced.output(0).get_target_inputs():
        target.replace_source_output(square.output(0))
    fitting = openvino.Model(model.get_results(), [images], "image_encoder")
    _name_nodes(square)
    return fitting


def _compute_fit(shape_2: Any, size: np.int64) -> Any:
    """Compute the size of an image whose longest side becomes S."""
    from openvino import opset13 as ops

    longest_1 = ops.reduce_max(shape_2, ops.constant([0], np.int64), keep_dims=True)
    # Rounded half up in whole numbers, as compute_resized_size does.
    doubled = ops.add(ops.multiply(shape_2, ops.constant([2 * size], np.int64)), longest_1)
    resized_2 = ops.divide(doubled, ops.multiply(longest_1, ops.constant([2], np.int64)))
    return ops.maximum(resized_2, ops.constant([1], np.int64))


def _pad(images: Any, missing_2: Any) -> Any:
    """Add rows below and columns on the right, zeros; where less than none is missing, none."""
    from openvino import opset13 as ops

    after_2 = ops.maximum(missing_2, ops.constant([0], np.int64))
    after_4 = ops.concat([ops.constant([0, 0], np.int64), after_2], 0)
    return ops.pad(images, ops.constant([0] * 4, np.int64), after_4, "constant", ops.constant(0, np.float32))


def _resize(images: Any, resized_2: Any) -> Any:
    from openvino import opset13 as ops

    mean = ops.constant(np.array(MEAN, np.float32).reshape(1, 3, 1, 1))
    std = ops.constant(np.array(STD, np.float32).reshape(1, 3, 1, 1))
    # Whole numbers again, or what lies halfway between two of them would be rounded either way.
    pixels = ops.round(ops.add(ops.multiply(images, std), mean), "half_away_from_zero")
    rows_1, columns_1 = ops.split(resized_2, ops.constant(0, np.int64), 2).outputs()
    for length_1, axis in ((columns_1, 3), (rows_1, 2)):  # Pillow's order
        pixels = ops.interpolate(
            pixels,
            length_1,
            mode="bilinear_pillow",
            shape_calculation_mode="sizes",
            axes=ops.constant([axis], np.int64),
            cube_coeff=0.0,
        )
        pixels = ops.round(pixels, "half_away_from_zero")
    return ops.divide(ops.subtract(pixels, mean), std)


def _name_nodes(last: Any) -> None:
    """Name all nodes from the input to ``last``, so that quantization can leave them out."""
    waiting, seen = [last], set()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen or node.get_type_name() == "Parameter":
            continue
        if not node.get_friendly_name().startswith(PREFIX):
            node.set_friendly_name(f"{PREFIX}{node.get_friendly_name()}")
        seen.add(node.get_friendly_name())
        waiting += [source.get_source_output().get_node() for source in node.inputs()]
