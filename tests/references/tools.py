"""Clients of labelling tools, written from what the tools' own code feeds and reads (August 2026); none of them is installed here.

X-AnyLabeling 4.0 and samexporter up to 0.4: ``sam_onnx.py``, ``sam2_onnx.py``; CVAT: ``cvat-ui/plugins/sam/src/ts/``; Label Studio ML: ``model.py``.
"""

import sys
import types
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location

import cv2
import numpy as np
import onnxruntime
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOOL_SIZE, CANVAS = 1024, (684, 1024)


def open_session(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


class XAnyLabeling:
    """Warps an image onto a canvas of 684 x 1024, unsmoothed, and its mask back; appends a padding point to all prompts."""

    def __init__(self, encoder, decoder):
        self.encoder, self.decoder = open_session(encoder), open_session(decoder)

    def segment(self, image_HW3, points, labels):
        height, width = image_HW3.shape[:2]
        scale = min(CANVAS[0] / height, CANVAS[1] / width)
        there = np.array([[scale, 0, 0], [0, scale, 0]])
        canvas = cv2.warpAffine(image_HW3, there, CANVAS[::-1], flags=cv2.INTER_LINEAR)
        (embedding,) = self.encoder.run(None, {self.encoder.get_inputs()[0].name: canvas.astype(np.float32)})
        masks, _, _ = self.decoder.run(
            None,
            {
                "image_embeddings": embedding,
                "point_coords": (np.array([[*points, [0, 0]]]) * scale).astype(np.float32),
                "point_labels": np.array([[*labels, -1]], np.float32),
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array(CANVAS, np.float32),
            },
        )
        back = np.array([[1 / scale, 0, 0], [0, 1 / scale, 0]])
        return cv2.warpAffine(masks[0][0], back, (width, height), flags=cv2.INTER_LINEAR) > 0


class XAnyLabelingSam2:
    """Stretches an image in floating point, appends no padding point, takes the best mask and resizes it; ports go by their order."""

    def __init__(self, encoder, decoder):
        self.encoder, self.decoder = open_session(encoder), open_session(decoder)
        self.size = self.encoder.get_inputs()[0].shape[2:]

    def segment(self, image_HW3, points, labels):
        height, width = image_HW3.shape[:2]
        channels = [
            Image.fromarray(image_HW3[..., channel].astype(np.float32) / 255).resize(self.size[::-1], Image.BILINEAR)
            for channel in range(3)
        ]
        pixels = (np.stack(channels) - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
        fine, middle, coarse = self._run(self.encoder, [pixels[None].astype(np.float32)])
        coords = np.array([points]) / (width, height) * self.size[::-1]
        earlier = np.zeros((1, 1, *(side // 4 for side in self.size)), np.float32)
        inputs = [coarse, fine, middle, coords.astype(np.float32), np.array([labels], np.float32), earlier]
        masks, scores = self._run(self.decoder, [*inputs, np.zeros(1, np.float32)])
        return cv2.resize(masks[0][np.argmax(scores.squeeze())], (width, height)) > 0

    @staticmethod
    def _run(session, inputs):
        return session.run(None, {port.name: value for port, value in zip(session.get_inputs(), inputs, strict=True)})


class CvatPage:
    """Decodes embeddings of 256 x 64 x 64, box first, without a padding point; keeps the last mask for a further click."""

    def __init__(self, decoder):
        self.decoder = open_session(decoder)
        self.low_res = None

    def segment(self, embedding, size, points, labels, *, further=False):
        """Answer the mask of the whole image, whose width and height are given."""
        masks, low_res, *bounds = self.decoder.run(
            ["masks", "low_res_masks", "xtl", "ytl", "xbr", "ybr"],
            {
                "image_embeddings": np.frombuffer(embedding, np.float32).reshape(1, 256, 64, 64),
                "point_coords": (np.array([points]) * TOOL_SIZE / max(size)).astype(np.float32),
                "point_labels": np.array([labels], np.float32),
                "orig_im_size": np.array(size[::-1], np.float32),
                "mask_input": self.low_res if further else np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.array([further], np.float32),
            },
        )
        self.low_res = low_res.reshape(1, 1, 256, 256)
        left, top, right, bottom = (int(bound[0]) for bound in bounds)
        assert masks.dtype == np.uint8
        whole = np.zeros(size[::-1], bool)
        # The page reads the numbers row by row, by the width of the bounds.
        whole[top : bottom + 1, left : right + 1] = masks.reshape(bottom - top + 1, right - left + 1) > 0
        return whole


class LabelStudioMLBase:
    """What a backend inherits: values by name, the tags of the labelling interface, and files by their address."""

    def __init__(self):
        self.values = {}
        self.setup()

    def set(self, key, value):
        self.values[key] = value

    def get(self, key):
        return self.values[key]

    def get_first_tag_occurence(self, control, shown):
        return {"BrushLabels": "brush"}[control], {"Image": "image"}[shown], "image"

    def get_local_path(self, url, task_id=None):
        return url


@contextmanager
def import_handler(file):
    """Import a handler by its path, with its folder and stand-ins of Label Studio's packages in reach."""
    modules = {
        name: types.ModuleType(name)
        for name in ("label_studio_ml", "label_studio_ml.model", "label_studio_sdk", "label_studio_sdk.converter")
    }
    modules["label_studio_ml.model"].LabelStudioMLBase = LabelStudioMLBase
    modules["label_studio_sdk.converter"].brush = types.SimpleNamespace(mask2rle=lambda mask: mask)
    sys.modules.update(modules)
    sys.path.insert(0, str(file.parent))
    try:
        spec = spec_from_file_location(f"handler_{file.stem}", file)
        handler = module_from_spec(spec)
        spec.loader.exec_module(handler)
        yield handler
    finally:
        sys.path.remove(str(file.parent))
        for name in (*modules, "model_handler"):
            sys.modules.pop(name, None)
