"""The report as one page that needs nothing but itself: the table, the text, and the same images side by side."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vpexp.reporting.comparison import COLUMNS, FIRST_COST, Comparison, describe_columns, list_cells
from vpexp.visuals import split_comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANNOTATED = "annotated"
LONGEST_SIDE = 400
QUALITY = 82


@dataclass(frozen=True, slots=True)
class Picture:
    """A small JPEG, the line below it, and where the large picture lies, from the page's folder, if that is known."""

    jpeg: bytes
    size: tuple[int, int]
    caption: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One image: as annotated, and as predicted by each form of the model.

    Attributes:
        name: the image's name.
        pictures: by column, ``annotated`` first.
    """

    name: str
    pictures: Mapping[str, Picture]


def read_pictures(overlays: Mapping[str, Path], prefix: str = "", base: Path | None = None) -> list[PictureRow]:
    """Read the overlays that several tests left, image by image.

    Args:
        overlays: the folder of overlays by column; one that is not there is passed over.
        prefix: what the file names begin with, and the names shown do not.
        base: the page's folder, above all of them, from which pictures are linked; None links none.
    """
    folders = {column: folder for column, folder in overlays.items() if folder.is_dir()}
    names = dict.fromkeys(path.name for folder in folders.values() for path in sorted(folder.glob("*.png")))
    rows = []
    for name in names:
        pictures: dict[str, Picture] = {}
        for column, folder in folders.items():
            if not (folder / name).is_file():
                continue
            annotated, predicted = split_comparison(folder / name)
            link = (folder / name).relative_to(base).as_posix() if base else ""
            pictures.setdefault(ANNOTATED, replace(shrink(*annotated), link=link))
            pictures[column] = replace(shrink(*predicted), link=link)
        rows.append(PictureRow(name.removesuffix(".png").removeprefix(prefix), pictures))
    return rows


def plot_epochs(metrics_csv: Path) -> "Figure | None":
    """Plot loss and metrics on val by epoch; None where the table holds no epochs of a training."""
    import pandas as pd
    from matplotlib.figure import Figure

    if not metrics_csv.is_file():
        return None
    table = pd.read_csv(metrics_csv)
    if "train/loss" not in table:
        return None
    table = table.set_index("epoch")
    figure = Figure(figsize=(9, 3), layout="constrained")
    groups = (("train/loss",), ("val/f1-score", "val/mean_iou", "val/map"))
    for axes, names in zip(figure.subplots(1, 2), groups, strict=True):
        for name in names:
            if name in table:
                axes.plot(table[name].dropna(), marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def shrink(picture: Image.Image, caption: str) -> Picture:
    """Make a picture small: as JPEG, its longest side no longer than ``LONGEST_SIDE``."""
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    file = BytesIO()
    small.save(file, "JPEG", quality=QUALITY, optimize=True)
    return Picture(file.getvalue(), small.size, caption)


def render(template: str, **content: Any) -> str:
    """Render a page from a template of ``templates/``: text is escaped, and ``base64`` encodes what lies inside the page.

    Args:
        template: its file name.
        content: what the template names.
    """
    environment = Environment(
        loader=PackageLoader("vpexp.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["base64"] = lambda content: b64encode(content).decode()
    return environment.get_template(template).render(content) + "\n"


@dataclass(frozen=True, slots=True)
class LinkedPicture:
    """A small picture that leads to the large one.

    Attributes:
        picture: the small one.
        link: to the large one, from the page's folder.
        name: of the image.
        words: what is said of it.
    """

    picture: Picture
    link: str
    name: str
    words: str


@dataclass(frozen=True, slots=True)
class RunPage:
    """The page of a training or a test.

    Attributes:
        split: what was evaluated.
        findings: lines on what came out.
        columns: of the table: what was measured.
        rows: of the table: a metric and its numbers.
        note: on the table.
        class_columns: the same by class.
        classes: the same by class.
        galleries: pictures below a title.
        pictures_note: on them.
        curves: a plot of the epochs as SVG; none of a test.
        plots: PNG files beside the page.
        legend: classes and their colours.
    """

    split: str
    findings: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str
    class_columns: Sequence[str]
    classes: Sequence[tuple[str, Sequence[str]]]
    galleries: Sequence[tuple[str, Sequence[LinkedPicture]]]
    pictures_note: str
    curves: str | None = None
    plots: Sequence[Path] = ()
    legend: Sequence[tuple[str, str]] = ()


def build_run_page(title: str, page: RunPage) -> str:
    """Build the page of a training or a test as HTML; small pictures are inside it."""
    return render("run.html", title=title, page=page)


def build_page(comparison: Comparison, rows: Sequence[PictureRow] = (), legend: Sequence[tuple[str, str]] = ()) -> str:
    """Build the page as HTML; pictures are inside it.

    Args:
        comparison: the table and the text.
        rows: pictures.
        legend: classes and their colours in them.
    """
    return render(
        "report.html",
        title=comparison.title,
        comparison=comparison,
        columns=COLUMNS,
        table=list_cells(comparison),
        first_cost=FIRST_COST,
        description=describe_columns(comparison),
        rows=rows,
        legend=legend,
        shown=[ANNOTATED, *comparison.columns],
    )
