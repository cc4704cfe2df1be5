"""An exported model as an MLflow model: its files, the code that serves it, and what that needs installed."""

import base64
import shutil
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageDraw

import vpexp
from vpexp.deploy.serving import IMAGE, PROMPTS
from vpexp.inference.exported import ExportedModel

SERVED_MODEL = Path(__file__).with_name("served_model.py")
ROOMS = (
    "__init__.py",
    "errors.py",
    "files.py",
    "runtime.py",
    "data/*.py",
    "inference/*.py",
    "deploy/__init__.py",
    "deploy/serving.py",
)
RUNTIMES = {"openvino": "openvino", "onnx": "onnxruntime"}
NEEDED = ("mlflow", "numpy", "pillow", "pycocotools")
EXAMPLE_SIZE, EXAMPLE_BOX = (96, 64), (20, 12, 70, 50)  # width and height; xyxy


def write_mlflow_model(model: ExportedModel, folder: Path) -> Path:
    """Write an MLflow model (pyfunc) that answers images and prompts with masks; see ``serving.py`` for the form.

    It holds everything: the exported files and vpexp's code. torch is not among what it needs.

    Args:
        model: what was exported.
        folder: where the MLflow model goes; what lies there is replaced.
    """
    import mlflow.pyfunc

    shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory() as draft:
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(SERVED_MODEL),
            artifacts={file.name: str(file) for file in model.files},
            code_paths=[str(_copy_code(Path(draft)))],
            signature=_build_signature(),
            input_example=_build_example(),
            pip_requirements=[f"{name}=={version(name)}" for name in (*NEEDED, RUNTIMES[model.format])],
            metadata={"format": model.format},
        )
    return folder


def _copy_code(folder: Path) -> Path:
    """Copy the rooms of the package that serving is made of; a server would upload all of it file by file."""
    package = Path(vpexp.__file__).parent
    for room in ROOMS:
        for file in package.glob(room):
            target = folder / package.name / file.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
    return folder / package.name


def _build_signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property, Schema

    numbers = Array(DataType.double)
    mask = Object([Property("size", Array(DataType.long)), Property("counts", DataType.string)])
    # MLflow would refuse whole numbers where the signature has doubles, so the prompts are checked by vpexp.
    prompts = [ColSpec(AnyType(), name, required=False) for name in PROMPTS]
    found = [
        ColSpec(numbers, "scores", required=False),
        ColSpec(Array(DataType.string), "labels", required=False),
    ]
    return ModelSignature(
        Schema([ColSpec(DataType.string, IMAGE), *prompts]),
        Schema([ColSpec(Array(mask), "masks"), ColSpec(numbers, "iou"), ColSpec(Array(numbers), "boxes"), *found]),
    )


def _build_example() -> Any:
    """Draw an image with a box around what is on it."""
    import pandas as pd

    image = Image.new("RGB", EXAMPLE_SIZE, "darkgreen")
    ImageDraw.Draw(image).ellipse(EXAMPLE_BOX, fill="gold")
    content = BytesIO()
    image.save(content, "PNG")
    text = base64.b64encode(content.getvalue()).decode("ascii")
    return pd.DataFrame([{IMAGE: text, "boxes": [[float(side) for side in EXAMPLE_BOX]]}])
