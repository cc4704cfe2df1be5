"""``stage=data``: what is in a data set, and what to look at before anything is trained."""

from dataclasses import replace
from pathlib import Path

from vpexp.config.saved import name_data
from vpexp.console import console, log_line
from vpexp.data.annotations import SPLIT_NAMES, AnnotatedDataset
from vpexp.data.tiles import plan_windows
from vpexp.data.variants import list_variants
from vpexp.errors import DataError
from vpexp.files import write_json, write_text
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import build_tiling, load_configured_dataset
from vpexp.survey.duplicates import Signature, find_duplicates, read_signatures
from vpexp.survey.findings import find_findings
from vpexp.survey.measure import SplitMeasures, measure_dataset, summarize_objects
from vpexp.survey.page import build_page, choose_images, draw_images
from vpexp.survey.plots import draw_plots
from vpexp.survey.survey import Finding, Survey
from vpexp.survey.tables import (
    build_folder_table,
    build_tables,
    describe_survey,
    list_damaged,
    list_metrics,
    render,
    write_duplicates,
)

CLASSES_ON_TERMINAL = 15
STYLES = {"error": "bold red", "warning": "yellow", "note": ""}


def run(context: RunContext) -> StageResult:
    """Survey all splits: tables and findings on the terminal, plots, pictures and one page in the run's folder.

    Raises:
        DataError: the folder cannot be read as a data set; with ``data.strict``: a defect, or a picture in two splits.
    """
    dataset = _load(context)
    splits = measure_dataset(dataset)
    survey = _build_survey(context, dataset, splits)
    for table in build_tables(survey, CLASSES_ON_TERMINAL):
        console.print(render(table))
    if context.cfg.stage.duplicates:
        signatures = _read(context, splits)
        damaged = tuple(list_damaged(dataset.root, splits, signatures))
        survey = replace(survey, duplicates=find_duplicates(splits, signatures), damaged=damaged)
    findings = find_findings(survey)
    artifacts = _write(context, survey, findings)
    _tell(findings)
    _tell_of_cache(context, splits)
    log_line(f"report: {artifacts['report']}")
    for path in artifacts.values():
        context.tracker.log_artifact(path)
    metrics = list_metrics(survey)
    if survey.duplicates is not None and survey.duplicates.leak_count and context.cfg.data.strict:
        context.tracker.log_results(metrics)
        raise DataError(f"{findings[0].text} (data.strict=false reports it); see {artifacts['report']}")
    return StageResult(metrics, artifacts, context.folder.path)


def _load(context: RunContext) -> AnnotatedDataset:
    """Read the data set; where that cannot be done, show what is there."""
    try:
        return load_configured_dataset(context, SPLIT_NAMES, whole=True, keep_empty=True)
    except DataError:
        root = context.cfg.data.root
        if root is not None:
            _show_folder(Path(root).expanduser())
        raise


def _show_folder(root: Path) -> None:
    table = build_folder_table(root)
    if table is not None:
        console.print(render(table))


def _read(context: RunContext, splits: tuple[SplitMeasures, ...]) -> list[Signature]:
    """Read all image files once."""
    paths = [path for split in splits for path in split.paths]
    turned = [one for split in splits for one in split.turned]
    signatures = read_signatures(paths, turned)
    damaged = next((one for one in signatures if one.damage), None)
    if damaged is not None and context.cfg.data.strict:
        raise DataError(f"{damaged.path}: {damaged.damage} (data.strict=false passes over it)")
    return signatures


def _build_survey(context: RunContext, dataset: AnnotatedDataset, splits: tuple[SplitMeasures, ...]) -> Survey:
    cfg = context.cfg
    sizes = {split.name: summarize_objects(split, cfg.model.image_size, cfg.data.tile) for split in splits}
    return Survey(
        name=name_data(cfg),
        root=dataset.root,
        format=dataset.format,
        categories=dataset.categories,
        splits=splits,
        model=cfg.model.name,
        image_size=cfg.model.image_size,
        object_sizes={name: size for name, size in sizes.items() if size is not None},
        notes=dataset.notes,
        tile=cfg.data.tile,
    )


def _write(context: RunContext, survey: Survey, findings: list[Finding]) -> dict[str, Path]:
    """Write all files of the survey; return them by name."""
    folder = context.folder.path
    files = {"report": folder / "report.html", "data": folder / "data.json"}
    write_json(files["data"], describe_survey(survey, findings))
    if survey.duplicates is not None and (survey.duplicates.pairs or survey.duplicates.alike):
        files["duplicates"] = folder / "duplicates.csv"
        write_duplicates(files["duplicates"], survey.duplicates)
    plots = draw_plots(survey, folder / "plots")
    chosen = choose_images(survey.splits, context.cfg.stage.overlays)
    images = draw_images(chosen, survey.categories, context.folder.overlays)
    files |= {"plots": folder / "plots"} if plots else {}
    files |= {"overlays": context.folder.overlays} if images else {}
    write_text(files["report"], build_page(survey, findings, plots, images))
    return files


def _tell(findings: list[Finding]) -> None:
    """Describe what to look at."""
    log_line("")
    log_line(
        "what to look at:" if findings else "nothing stands out",
        style="bold",
    )
    for finding in findings:
        log_line(f"- {finding.text}", style=STYLES[finding.level])
        for example in finding.examples:
            log_line(f"    {example}")
        if finding.advice:
            log_line(f"  -> {finding.advice}")


def _tell_of_cache(context: RunContext, splits: tuple[SplitMeasures, ...]) -> None:
    """Describe what the embeddings of all images, or of all their tiles, take; of train's with the variants of ``data.augment``."""
    from vpexp.stages.shared.embeddings import describe_need  # imports torch, which nothing else here needs

    tiling = build_tiling(context.settings.data)
    variants = {"train": len(list_variants(context.settings.data.augment))}
    count = sum(
        len(plan_windows(tiling, *size)) * variants.get(split.name, 1)
        for split in splits
        for size in split.sizes_I2.tolist()
    )
    if text := describe_need(context.cfg, count):
        log_line(text)
