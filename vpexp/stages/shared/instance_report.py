"""What a test without prompts found, on the terminal, as pictures and as ``report.html``."""

from collections.abc import Sequence
from pathlib import Path

from vpexp.config.saved import name_data
from vpexp.console import console, format_count, log_line
from vpexp.files import write_text
from vpexp.reporting.comparison import TextTable, build_text_table
from vpexp.reporting.instances import (
    AUTO,
    BOXES,
    GRID,
    ROWS,
    TITLES,
    list_cells,
    plot_confusion,
    plot_precision,
    save_plot,
)
from vpexp.reporting.page import LinkedPicture, RunPage, build_run_page, shrink
from vpexp.stages.shared.context import PRECISION_PLOT, RunContext
from vpexp.stages.shared.evaluate import build_class_table, format_metric, name_overlay, print_unreadable
from vpexp.stages.shared.instance_test import InstanceTest
from vpexp.visuals import build_legend, save_picture

WORDS = {
    AUTO: "what the model finds without prompts",
    GRID: "what a grid of points gives, as stage=predict prompts=grid keeps it",
    BOXES: "the same decoder, given the annotated boxes and their classes: the most that better boxes and names could bring",
}
NOTE = (
    "map: mean over IoU 0.5 to 0.95 and the classes, each mask under its own; any_class: whatever the class. msa: mean over these IoU and "
    "the images of TP / (TP + FP + FN). precision, recall, f1: masks at an IoU of 0.5, whatever the class; class_accuracy: of "
    "these, how many have the right one. Times are medians, of the search alone: all columns look at the same embeddings."
)
PICTURES_NOTE = "Annotation on the left, beside it what was found; a picture opens in full size."


def print_instances(context: RunContext, known: Sequence[str], found: InstanceTest) -> None:
    """Print the table, the classes, and what to know of them; ``known`` are the classes of the data set."""
    print_unreadable(_name(context), found.unreadable)
    columns = [TITLES[way] for way in found.metrics]
    console.print(build_text_table(TextTable(_build_title(context, found), columns, _list_rows(found))))
    if len(found.per_class.get("map_per_class", {})) > 1:
        console.print(build_class_table(found.per_class, "by class, auto"))
    for line in _describe(context, found):
        log_line(line)
    unknown = [label for label in found.categories if label not in known]
    if unknown:
        line = f"the data set has no class {', '.join(unknown)}, which the model names: such masks are wrong in map"
        log_line(line, style="yellow")


def _name(context: RunContext) -> str:
    return f"{name_data(context.cfg)}/{context.cfg.stage.split}"


def _build_title(context: RunContext, found: InstanceTest) -> str:
    counts = f"{format_count(found.images, 'image')}, {format_count(found.objects, 'object')}"
    return f"{context.cfg.model.name} on {_name(context)} without prompts: {counts}"


def _list_rows(found: InstanceTest) -> list[tuple[str, list[str]]]:
    return list_cells(found.metrics, [row.name for row in ROWS], len(found.categories))


def _describe(context: RunContext, found: InstanceTest) -> list[str]:
    """Describe the columns, and what counts in them."""
    lines = [f"{TITLES[way]}: {WORDS[way]}" for way in found.results]
    if AUTO in found.results:
        typed = context.cfg.predict.auto_score is not None
        lines.append(
            f"msa, precision, recall, f1 and class_accuracy of auto count masks with a score of at least "
            f"{found.results[AUTO].threshold:.2f} ({'predict.auto_score' if typed else 'chosen on val'})"
        )
    return lines


def write_instances(context: RunContext, found: InstanceTest) -> dict[str, Path]:
    """Write the pictures and the page into the run's folder, and log them; return them by their artifacts' names."""
    folder, cfg = context.folder, context.cfg
    plots = {PRECISION_PLOT: plot_precision(found.results, AUTO)}
    if AUTO in found.results:
        plots["confusion"] = plot_confusion(found.results[AUTO].confusion, found.categories)
    artifacts = {name: folder.path / f"{name}.png" for name in plots}
    for name, path in artifacts.items():
        save_plot(plots[name], path)
    pictures: list[LinkedPicture] = []
    taken: set[str] = set()
    for image_id, picture in found.pictures.items():
        path = folder.overlays / f"{cfg.stage.split}_{name_overlay(image_id, taken)}.png"
        save_picture(picture, path)
        pictures.append(LinkedPicture(shrink(picture, ""), f"overlays/{path.name}", image_id, ""))
    per_class = found.per_class
    classes = [
        (label, [format_metric(name, values[label]) for name, values in per_class.items()])
        for label in per_class.get("map_per_class", ())
    ]
    page = RunPage(
        split=f"{cfg.stage.split}, without prompts",
        findings=_describe(context, found),
        columns=[TITLES[way] for way in found.metrics],
        rows=_list_rows(found),
        note=NOTE,
        class_columns=list(per_class),
        classes=classes if len(classes) > 1 else [],
        galleries=[("Images", pictures)] if pictures else [],
        pictures_note=PICTURES_NOTE,
        plots=list(artifacts.values()),
        legend=build_legend(found.categories),
    )
    artifacts["report"] = folder.path / "report.html"
    write_text(artifacts["report"], build_run_page(f"{cfg.stage.name}: {_build_title(context, found)}", page))
    if found.pictures:
        artifacts["overlays"] = folder.overlays
    for path in artifacts.values():
        context.tracker.log_artifact(path)
    log_line(f"report: {artifacts['report']}")
    return artifacts
