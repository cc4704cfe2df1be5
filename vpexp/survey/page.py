"""A survey as one page that needs nothing but itself: findings, tables, plots, and images with their masks."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vpexp.reporting.page import STYLE, start_page
from vpexp.survey.pictures import DrawnImage
from vpexp.survey.tables import build_skipped, build_tables
from vpexp.survey.types import DataTable, Finding, Survey

MOST_CLASSES = 200
LEVEL_NAMES = {"error": "mend this", "warning": "look at this", "note": "note"}
OWN_STYLE = """\
.findings { display: grid; gap: 10px; padding: 0; margin: 0; list-style: none; }
.findings li { max-width: 110ch; padding: 8px 14px; border-left: 4px solid var(--line); background: var(--shade); }
.findings b { margin-right: 8px; font-size: 12px; letter-spacing: .03em; text-transform: uppercase; color: var(--soft); }
.findings .error { border-color: #d23b3b; } .findings .error b { color: #d23b3b; }
.findings .warning { border-color: #d9971e; } .findings .warning b { color: #b97a0d; }
.findings .advice { display: block; color: var(--soft); }
.findings ul { margin: 4px 0 0; font-size: 13px; color: var(--soft); }
.findings ul li { padding: 0; border: 0; background: none; list-style: disc; }
.long th { text-align: left; vertical-align: top; }
.long td { white-space: normal; min-width: 140px; text-align: left; overflow-wrap: anywhere; vertical-align: top; }
.plots { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(560px, 100%), 1fr)); align-items: start; }
.plots img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
.gallery { display: grid; gap: 16px 12px; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); align-items: start; }
.gallery figure img { height: 240px; object-fit: contain; }
.gallery figcaption { overflow-wrap: anywhere; }
"""


def build_page(survey: Survey, findings: Sequence[Finding], plots: Sequence[Path], images: Sequence[DrawnImage]) -> str:
    """Build the page as HTML; plots and pictures are inside it.

    Args:
        survey: the numbers.
        findings: what to look at.
        plots: PNG files.
        images: the drawn images.
    """
    title, skipped = f"Data set {survey.name}", build_skipped(survey)
    counted = f"{survey.image_count:,} images, {survey.object_count:,} objects, {len(survey.categories)} classes"
    parts = [
        *start_page(escape(title), STYLE + OWN_STYLE),
        f'<p class="soft">{escape(f"{counted}; {survey.format}, {survey.root}")}</p>',
        *_build_findings(findings),
    ]
    for table in build_tables(survey, MOST_CLASSES):
        parts += _build_table(table)
    if plots:
        parts += ["<h2>Plots</h2>", '<div class="plots">', *map(_build_plot, plots), "</div>"]
    for split in dict.fromkeys(image.split for image in images):
        shown = [image for image in images if image.split == split]
        parts.append(f"<h2>Images of {escape(split)}</h2>")
        parts += ['<div class="gallery">', *map(_build_figure, shown), "</div>"]
    if skipped is not None:
        parts += _build_table(skipped, "long")
    if survey.notes:
        parts += ["<h2>How it was read</h2>", "<ul>", *(f"<li>{escape(note)}</li>" for note in survey.notes), "</ul>"]
    return "\n".join([*parts, "</body>", "</html>"]) + "\n"


def _build_findings(findings: Sequence[Finding]) -> Iterable[str]:
    yield "<h2>What to look at</h2>"
    if not findings:
        yield '<p class="soft">Nothing stands out.</p>'
        return
    yield '<ul class="findings">'
    for finding in findings:
        advice = f'<span class="advice">{escape(finding.advice)}</span>' if finding.advice else ""
        examples = "".join(f"<li>{escape(example)}</li>" for example in finding.examples)
        listed = f"<ul>{examples}</ul>" if examples else ""
        name = LEVEL_NAMES[finding.level]
        yield f'<li class="{finding.level}"><b>{name}</b>{escape(finding.text)}{advice}{listed}</li>'
    yield "</ul>"


def _build_table(table: DataTable, kind: str = "") -> Iterable[str]:
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    yield f"<h2>{escape(table.title)}</h2>"
    yield f'<div class="wide {kind}"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>'
    for name, *cells in table.rows:
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield f'<tr><th scope="row">{escape(name)}</th>{numbers}</tr>'
    yield "</tbody>\n</table></div>"
    if table.note:
        yield f'<p class="soft">{escape(table.note)}</p>'


def _build_plot(path: Path) -> str:
    content = b64encode(path.read_bytes()).decode()
    name = escape(path.stem.replace("_", " "), quote=True)
    return f'<img src="data:image/png;base64,{content}" alt="{name}">'


def _build_figure(image: DrawnImage) -> str:
    width, height = image.picture.size
    content = b64encode(image.picture.jpeg).decode()
    name = escape(image.name, quote=True)
    return (
        f'<figure><img src="data:image/jpeg;base64,{content}" width="{width}" height="{height}" alt="{name}" '
        f'loading="lazy"><figcaption><b>{name}</b> {escape(image.picture.caption)}</figcaption></figure>'
    )
