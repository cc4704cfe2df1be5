"""The MLflow model itself: MLflow runs this file when it loads what ``package.py`` wrote."""

import threading
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from vpexp.deploy.serving import answer
from vpexp.errors import DataError
from vpexp.inference.graph_predictor import GraphPredictor
from vpexp.inference.load import load_predictor
from vpexp.runtime import quiet_libraries


class MaskServer(PythonModel):  # type: ignore[misc]
    """Answers tables of images, with or without prompts, with masks."""

    def load_context(self, context: Any) -> None:
        """Load the exported model that MLflow has laid out."""
        quiet_libraries()
        predictor = load_predictor(Path(next(iter(context.artifacts.values()))).parent)
        assert isinstance(predictor, GraphPredictor), "only exported models are packed"
        self._predictor = predictor
        self._lock = threading.Lock()  # a server asks from several threads; the predictor's outputs hold for one call

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[dict[str, Any]]:
        """Answer row by row.

        Raises:
            MlflowException: a row cannot be used; a server answers with HTTP 400 and its message.
        """
        del context, params
        try:
            with self._lock:
                return [
                    answer(self._predictor, {str(key): value for key, value in row.items()}, f"row {number}")
                    for number, row in enumerate(model_input.to_dict("records"))
                ]
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(MaskServer())
