"""The report as one page that needs nothing but itself: the table, the text, and the same images side by side."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from vpexp.reporting.comparison import COLUMNS, FIRST_COST, Comparison, Section, describe_columns, list_cells
from vpexp.visuals import split_comparison

STYLE = """\
:root { color-scheme: light dark; --text: #1b1b1f; --soft: #62626b; --line: #d9d9de; --ground: #ffffff; --shade: #f5f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ec; --soft: #a0a0aa; --line: #3a3a42; --ground: #18181b; --shade: #212126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 32px 28px 64px; background: var(--ground); color: var(--text);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 20px; font-size: 22px; font-weight: 600; }
h2 { margin: 36px 0 8px; font-size: 17px; font-weight: 600; }
h3 { margin: 20px 0 6px; font-size: 14px; font-weight: 600; overflow-wrap: anywhere; }
p, li { max-width: 90ch; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 20px 5px 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td + td, th + th, th + td { min-width: 96px; padding: 5px 12px; text-align: right; }
thead th { border-bottom: 2px solid var(--text); }
tbody th { font-weight: 400; color: var(--soft); }
tr.cost th, tr.cost td { border-top: 2px solid var(--line); }
.soft { color: var(--soft); font-size: 14px; }
.row { display: grid; gap: 12px; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; background: var(--shade); }
figcaption { padding-top: 4px; color: var(--soft); font-size: 13px; line-height: 1.35; }
figcaption b { color: var(--text); font-weight: 600; }
"""

ANNOTATED = "annotated"
LONGEST_SIDE = 400
QUALITY = 82


@dataclass(frozen=True, slots=True)
class Picture:
    """A small JPEG and the line below it."""

    jpeg: bytes
    size: tuple[int, int]
    caption: str


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One image: as annotated, and as predicted by each form of the model.

    Attributes:
        name: the image's name.
        pictures: by column, ``annotated`` first.
    """

    name: str
    pictures: Mapping[str, Picture]


def read_pictures(overlays: Mapping[str, Path], prefix: str = "") -> list[PictureRow]:
    """Read the overlays that several tests left, image by image.

    Args:
        overlays: the folder of overlays by column; one that is not there is passed over.
        prefix: what the file names begin with, and the names shown do not.
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
            pictures.setdefault(ANNOTATED, shrink(*annotated))
            pictures[column] = shrink(*predicted)
        rows.append(PictureRow(name.removesuffix(".png").removeprefix(prefix), pictures))
    return rows


def shrink(picture: Image.Image, caption: str) -> Picture:
    """Make a picture small: as JPEG, its longest side no longer than ``LONGEST_SIDE``."""
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    file = BytesIO()
    small.save(file, "JPEG", quality=QUALITY, optimize=True)
    return Picture(file.getvalue(), small.size, caption)


def start_page(title: str, style: str) -> list[str]:
    """Start a page: all down to its heading; ``title`` is HTML."""
    return [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        f"<h1>{title}</h1>",
    ]


def build_page(comparison: Comparison, rows: Sequence[PictureRow] = ()) -> str:
    """Build the page as HTML; pictures are inside it."""
    title = escape(comparison.title)
    parts = [
        *start_page(title, STYLE),
        *_build_table(comparison),
        f'<p class="soft">{escape(describe_columns(comparison))}</p>',
    ]
    parts += [_build_section(section) for section in comparison.sections if section.finding]
    if rows:
        parts.append("<h2>The same images</h2>")
    for row in rows:
        parts += _build_row(row, [ANNOTATED, *comparison.columns])
    parts += [_build_section(section) for section in comparison.sections if not section.finding]
    return "\n".join([*parts, "</body>", "</html>"]) + "\n"


def _build_table(comparison: Comparison) -> Iterable[str]:
    heads = "".join(f'<th scope="col" title="{COLUMNS[name]}">{name}</th>' for name in comparison.columns)
    yield f'<div class="wide"><table>\n<thead><tr><th scope="col"></th>{heads}</tr></thead>\n<tbody>'
    for row, cells in list_cells(comparison):
        mark = ' class="cost"' if row.name == FIRST_COST else ""
        yield f'<tr{mark}><th scope="row">{row.title}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    yield "</tbody>\n</table></div>"


def _build_section(section: Section) -> str:
    lines = "\n".join(f"<li>{escape(line)}</li>" for line in section.lines)
    return f"<h2>{escape(section.title)}</h2>\n<ul>\n{lines}\n</ul>"


def _build_row(row: PictureRow, columns: Sequence[str]) -> Iterable[str]:
    yield f"<h3>{escape(row.name)}</h3>"
    yield f'<div class="wide"><div class="row" style="grid-template-columns: repeat({len(columns)}, minmax(150px, 1fr))">'
    for column in columns:
        picture = row.pictures.get(column)
        yield _build_figure(row.name, column, picture) if picture else "<div></div>"
    yield "</div></div>"


def _build_figure(name: str, column: str, picture: Picture) -> str:
    source = f"data:image/jpeg;base64,{b64encode(picture.jpeg).decode()}"
    width, height = picture.size
    label = escape(f"{name}, {column}", quote=True)
    # The column's name stands before what the overlay says of itself, without saying it twice.
    words = picture.caption.removeprefix(f"{column}: ").removeprefix("predicted from the prompts: ")
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" alt="{label}">'
        f"<figcaption><b>{column}</b> {escape(words)}</figcaption></figure>"
    )
