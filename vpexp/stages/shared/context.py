"""What every stage is given, and what it gives back."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vpexp.config.schema import Config
from vpexp.runfolder import RunFolder
from vpexp.tracking.mlflow_run import MlflowRun

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN, MOST_SHOWN = ("f1-score", "mean_iou", "map"), 6
OF_CLASS = "_per_class"
IMAGES_OF = "images_of_"
"""Name of the artifact that has a row for each image of a split."""
PRECISION_PLOT = "precision_recall"
"""Name of the artifact that is a plot of a test without prompts."""


@dataclass(frozen=True, slots=True, repr=False)
class StageResult:
    """What a stage found.

    Attributes:
        metrics: final numbers by name, ``test/f1-score``; NaN where a number has no meaning.
        artifacts: files made, by name.
        folder: the run's folder.
        details: what does not fit a number by name (per-class tables, baselines); goes into ``metrics.json``.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    folder: Path | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = [name for name in self.metrics if name.partition("/")[2].removeprefix("auto/") in SHOWN]
        first = shown or list(self.metrics)
        numbers = [f"{name} {self.metrics[name]:.4g}" for name in first[:MOST_SHOWN]]
        files = [f"artifacts: {', '.join(self.artifacts)}"] if self.artifacts else []
        return f"StageResult({'; '.join([*numbers, *files, str(self.folder)])})"

    def _repr_html_(self) -> str:
        table: str = self.to_dataframe().to_html(float_format="{:z.4f}".format, na_rep="")
        return f"<p>{html.escape(str(self.folder))}</p>{table}"

    def to_dataframe(self, by: str = "metric") -> "DataFrame":
        """Tabulate the numbers.

        Args:
            by: ``metric``: a row for each, a column for each split and baseline (``test``, ``before/test``, ``test/box_filled``);
                ``class``: a row for each class and split; ``image``: a row for each image evaluated, with the pixels of
                its annotated and predicted masks and of what they share, F1 and IoU.

        Raises:
            ValueError: ``by`` is none of these.
        """
        import pandas as pd

        if by == "metric":
            plain = {name: value for name, value in self.metrics.items() if not _is_of_class(name)}
            pairs = {tuple(name.rpartition("/")[::2]): value for name, value in plain.items()}
            columns = dict.fromkeys(column for column, _ in pairs)
            rows = dict.fromkeys(metric for _, metric in pairs)
            values = [[pairs.get((column, metric), math.nan) for column in columns] for metric in rows]
            return pd.DataFrame(values, index=list(rows), columns=[column or "value" for column in columns])
        if by == "class":
            found: dict[tuple[str, str], dict[str, float]] = {}
            for name, value in self.metrics.items():
                if _is_of_class(name):
                    metric, _, label = name.partition(f"{OF_CLASS}/")
                    split, _, metric = metric.rpartition("/")
                    found.setdefault((split, label), {})[metric] = value
            return pd.DataFrame([{"split": split, "class": label} | row for (split, label), row in found.items()])
        if by == "image":
            files = [path for name, path in self.artifacts.items() if name.startswith(IMAGES_OF)]
            return pd.concat([pd.read_csv(path) for path in files], ignore_index=True) if files else pd.DataFrame()
        raise ValueError(f"by={by!r}: must be metric, class or image")

    def plot(self) -> Image.Image:
        """Plot the epochs of a training (loss, and metrics on val), or how the images of a test are spread over IoU.

        Of a test without prompts it is the precision by recall.

        Raises:
            ValueError: this stage has measured neither.
        """
        if PRECISION_PLOT in self.artifacts:
            return Image.open(self.artifacts[PRECISION_PLOT], formats=("PNG",))
        from matplotlib.figure import Figure

        from vpexp.reporting.page import plot_epochs

        figure = plot_epochs(RunFolder(self.folder).metrics_csv) if self.folder else None
        if figure is None:
            images = self.to_dataframe("image")
            if images.empty:
                raise ValueError(f"nothing to plot: {self.folder} holds no epochs and no images that were evaluated")
            figure = Figure(figsize=(5, 3), layout="constrained")
            axes = figure.subplots()
            images["iou"].plot.hist(ax=axes, bins=20, range=(0, 1), xlabel="IoU of an image", ylabel="images")
        content = BytesIO()
        figure.savefig(content, format="png", dpi=110)
        return Image.open(content, formats=("PNG",))


def _is_of_class(name: str) -> bool:
    """Return whether a metric is that of one class: ``test/map_per_class/berry``."""
    return f"{OF_CLASS}/" in name


@dataclass(frozen=True)
class RunContext:
    """A run that is under way.

    Attributes:
        cfg: the complete configuration.
        folder: where its files lie.
        tracker: its record in MLflow.
        run_child: runs another stage as a whole run of its own, ``run_child(cfg, "test_torch")``: in that folder inside
            this run's, and as a child of this run in MLflow.
    """

    cfg: DictConfig
    folder: RunFolder
    tracker: MlflowRun
    run_child: Callable[[DictConfig, str], StageResult]

    @cached_property
    def settings(self) -> Config:
        """The configuration as the schema declares it."""
        settings: Any = OmegaConf.to_object(self.cfg)
        return cast("Config", settings)

    @property
    def output_dir(self) -> Path:
        """Where runs lie."""
        return Path(self.cfg.paths.output_dir).expanduser()

    @property
    def cache_dir(self) -> Path:
        """Where generated images, annotations and embeddings lie."""
        return Path(self.cfg.paths.cache_dir).expanduser()

    @property
    def weights_dir(self) -> Path:
        """Where downloaded weights lie."""
        return find_weights_dir(self.cfg)


def find_weights_dir(cfg: DictConfig) -> Path:
    """Find where downloaded weights lie."""
    return Path(cfg.paths.cache_dir).expanduser() / "weights"
