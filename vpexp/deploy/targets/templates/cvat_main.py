"""CVAT's serverless function: the embedding of an image, which CVAT's page decodes by itself. Written by vpexp."""

import base64
import io
import json
from typing import Any

from model_handler import ModelHandler
from PIL import Image


def init_context(context: Any) -> None:
    """Open the model once."""
    context.user_data.model = ModelHandler()


def handler(context: Any, event: Any) -> Any:
    """Answer an image with its embedding: float32 [1, 256, 64, 64] in base64."""
    image = Image.open(io.BytesIO(base64.b64decode(event.body["image"])))
    embedding = context.user_data.model.embed(image)
    body = json.dumps({"blob": base64.b64encode(embedding.tobytes()).decode()})
    return context.Response(body=body, headers={}, content_type="application/json", status_code=200)
