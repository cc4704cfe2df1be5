"""``stage=predict``: masks for images without annotation, found by the model itself, or from boxes, points or a grid of points."""

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from vpexp import visuals
from vpexp.config.saved import name_data
from vpexp.config.schema import Config
from vpexp.console import PlainTable, build_progress, console, format_count, log_line
from vpexp.data.annotations import SPLIT_NAMES, spread_places
from vpexp.data.image_files import ImageFileError
from vpexp.data.image_source import find_images
from vpexp.data.images import read_image, read_image_header
from vpexp.data.masks import compute_area
from vpexp.data.prompts import Prompts
from vpexp.data.skipped import SkipCounts, describe_remarks, order_by_count
from vpexp.errors import ConfigError, DataError
from vpexp.inference.coco_results import CocoResultWriter, build_result, describe_prompt
from vpexp.inference.instances import find_instances
from vpexp.inference.predict_plan import PredictionPlan, PredictionTask, plan_dataset, plan_images, plan_prompts
from vpexp.inference.predictor import InstanceModel, Predictor
from vpexp.inference.segment import FoundMask, Segmentation, segment
from vpexp.inference.tiled import find_by_grid, segment_tiles
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import build_tiling, load_configured_dataset
from vpexp.stages.shared.model import load_stage_model
from vpexp.stages.shared.predicted_dataset import LabelCollector

AUTO, GRID, DATASET = "auto", "grid", "dataset"


@dataclass(slots=True)
class _Totals:
    """What came of the images."""

    prompts: int = 0
    empty: int = 0
    weak: int = 0
    unstable: int = 0
    overlapping: int = 0
    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def images(self) -> int:
        return len(self.seconds)

    def add(self, prompts: int, segmentation: Segmentation, seconds: float) -> None:
        self.prompts += prompts
        self.empty += segmentation.empty
        self.weak += segmentation.weak
        self.unstable += segmentation.unstable
        self.overlapping += segmentation.overlapping
        self.scores.extend(mask.score for mask in segmentation.masks)
        self.seconds.append(seconds)

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers by name."""
        return {
            "predict/images": float(self.images),
            "predict/prompts": float(self.prompts),
            "predict/masks": float(len(self.scores)),
            "predict/mean_score": float(np.mean(self.scores)) if self.scores else math.nan,
            "predict/seconds_per_image": float(np.median(self.seconds)) if self.seconds else math.nan,
        }


@dataclass(frozen=True, slots=True)
class _Job:
    """All that a prediction carries along."""

    context: RunContext
    prompts: str
    plan: PredictionPlan
    writer: CocoResultWriter
    labels: LabelCollector | None
    skips: SkipCounts
    totals: _Totals

    def describe(self) -> dict[str, Any]:
        """Describe in numbers what came of the images."""
        totals = self.totals
        dataset = {} if self.labels is None else {"dataset": self.labels.describe()}
        return dataset | {
            "images": totals.images,
            "prompts": totals.prompts,
            "masks": len(totals.scores),
            "left_out": {
                "empty": totals.empty,
                "low score": totals.weak,
                "unstable": totals.unstable,
                "overlapping": totals.overlapping,
            },
            "without_prompts": self.plan.without_prompts,
            "annotated": self.plan.annotated,
            "skipped": dict(self.skips.counts),
            "examples": dict(self.skips.examples),
            "warnings": list(self.plan.warnings),
            "notes": describe_remarks([self.skips]),
        }


def run(context: RunContext) -> StageResult:
    """Predict the masks of all images that ``source`` and ``prompts`` name.

    Raises:
        ConfigError, DataError: source or prompts are not there, are malformed, or fit no image; no image can be read.
    """
    cfg = context.cfg
    skips = SkipCounts(strict=cfg.data.strict)
    plan = _plan(context, skips)
    predictor = load_stage_model(context.cfg, "predicting with").predictor
    prompts = _choose_prompts(context, predictor)
    if prompts == AUTO and predictor.instances:
        plan = replace(plan, categories=predictor.instances.labels)
    output = context.settings.output
    labels = LabelCollector(output, context.folder.path / DATASET, plan) if output.format else None
    writer = CocoResultWriter(context.folder.path, plan.categories)
    job = _Job(context, prompts, plan, writer, labels, skips, _Totals())
    try:
        with writer:
            _predict_all(job, predictor)
    except BaseException as error:
        if job.totals.images and isinstance(error, KeyboardInterrupt | SystemExit):
            log_line(
                f"stopped after {job.totals.images} of {format_count(len(plan.tasks), 'image')}; their masks are in {writer.predictions}"
            )
            if labels is not None:
                labels.write()
        with contextlib.suppress(OSError):
            _record(job)
        raise
    try:
        if job.totals.images:
            _tell(job)
            if labels is not None:
                labels.write()
    finally:
        _record(job)
    if not job.totals.images:
        reason, example = next(iter(skips.examples.items()))
        where = f"data.root={cfg.data.root}" if cfg.source is None else f"source={cfg.source}"
        raise DataError(f"{where}: no image with prompts can be read; the first: {example} ({reason})")
    artifacts = {"predictions": writer.predictions, "images": writer.image_list}
    if context.folder.overlays.is_dir():
        artifacts["overlays"] = context.folder.overlays
    return StageResult(job.totals.metrics, artifacts, context.folder.path, {"predict": job.describe()})


def _plan(context: RunContext, skips: SkipCounts) -> PredictionPlan:
    cfg = context.cfg
    if cfg.prompts == DATASET:
        dataset = load_configured_dataset(context, SPLIT_NAMES, whole=True, keep_boxes=True)
        plan = plan_dataset(dataset, keep_annotated=cfg.predict.keep_annotated)
    else:
        images = find_images(
            cfg.source, leave_out=context.output_dir, skips=skips, allow_outside=cfg.data.allow_outside
        )
        by_file = cfg.prompts not in (None, AUTO, GRID)
        plan = plan_prompts(images, Path(cfg.prompts).expanduser(), skips) if by_file else plan_images(images)
    for line in plan.warnings:
        log_line(line, style="yellow")
    return plan


def _choose_prompts(context: RunContext, predictor: Predictor) -> str:
    """Choose where prompts come from; where that is not asked for, from the model itself if it has learnt to find objects.

    Raises:
        ConfigError: it is asked for, and the model has not.
    """
    asked, instances = context.cfg.prompts, predictor.instances
    if asked == AUTO and instances is None:
        raise ConfigError(
            "prompts=auto: this model has no prompter, which finds objects by itself; stage=train learns one beside the decoder "
            "(prompter=default), prompts=grid asks with points all over the image"
        )
    prompts = asked or (GRID if instances is None else AUTO)
    if prompts == AUTO and instances is not None:
        score = _find_lowest_score(context.settings, instances)
        log_line(f"prompts=auto: the model finds the objects by itself, and keeps masks from a score of {score:.2f} on")
    return str(prompts)


def _find_lowest_score(settings: Config, instances: InstanceModel) -> float:
    chosen = settings.predict.auto_score
    return max(instances.threshold if chosen is None else chosen, settings.predict.min_score)


def _predict_all(job: _Job, predictor: Predictor) -> None:
    cfg, tasks = job.context.cfg, job.plan.tasks
    drawn = spread_places(len(tasks), cfg.stage.overlays)
    taken: set[str] = set()
    with build_progress() as progress:
        for place, task in enumerate(progress.track(tasks, description="predicting")):
            try:
                turned = task.annotated is None or task.annotated.exif_transpose
                if task.annotated is None:  # of a data set's images it was remarked when they were loaded
                    job.skips.remark(read_image_header(task.image.path).remarks, str(task.image.path))
                image_HW3 = read_image(task.image.path, turned)
            except ImageFileError as error:
                job.skips.skip(error.reason, str(task.image.path))
                continue
            started = time.perf_counter()
            prompts, segmentation = _segment(job, predictor, image_HW3, task, progress)
            seconds = time.perf_counter() - started
            _write(job.writer, task, image_HW3.shape, prompts, segmentation.masks)
            if job.labels is not None:
                job.labels.add(task, (image_HW3.shape[0], image_HW3.shape[1]), segmentation.masks)
            if len(prompts) or job.prompts == AUTO:
                job.totals.add(len(prompts), segmentation, seconds)
            if place in drawn and (len(prompts) or job.prompts == AUTO):
                name = visuals.name_picture(task.image.name.removesuffix(task.image.path.suffix), taken)
                picture = _draw(job, image_HW3, prompts, segmentation.masks)
                visuals.save_picture(picture, job.context.folder.overlays / f"{name}.png")


def _segment(
    job: _Job, predictor: Predictor, image_HW3: NDArray[np.uint8], task: PredictionTask, progress: Progress
) -> tuple[Prompts, Segmentation]:
    """Predict on one image, and name each mask."""
    settings = job.context.settings
    if task.prompts is not None:
        found = _segment_prompts(settings, predictor, image_HW3, task.prompts.prompts)
        labels = task.prompts.labels
        return task.prompts.prompts, replace(
            found, masks=[replace(mask, label=labels[mask.prompt]) for mask in found.masks]
        )
    if job.prompts == AUTO:
        assert predictor.instances is not None, "looked for before"
        score = _find_lowest_score(settings, predictor.instances)
        return find_instances(predictor, image_HW3, build_tiling(settings.data), min_score=score)
    points, found = find_by_grid(predictor, image_HW3, build_tiling(settings.data), settings.predict, progress)
    label = job.plan.categories[0]
    return points, replace(found, masks=[replace(mask, label=label) for mask in found.masks])


def _segment_prompts(
    settings: Config, predictor: Predictor, image_HW3: NDArray[np.uint8], prompts: Prompts
) -> Segmentation:
    if not len(prompts):  # all of its objects are annotated
        return Segmentation([])
    tiling, min_score = build_tiling(settings.data), settings.predict.min_score
    if tiling is not None:
        return segment_tiles(predictor, image_HW3, prompts, tiling, min_score=min_score)
    return segment(predictor, predictor.embed(image_HW3), prompts, min_score=min_score)


def _write(
    writer: CocoResultWriter,
    task: PredictionTask,
    shape: tuple[int, ...],
    prompts: Prompts,
    masks: Sequence[FoundMask],
) -> None:
    image = {"id": task.image.number, "file_name": task.image.name, "width": shape[1], "height": shape[0]}
    results = []
    for mask in masks:
        category_id = writer.category_ids[str(mask.label)]
        result = build_result(mask.rle, mask.score, image=image, category_id=category_id)
        results.append(result | {"prompt": describe_prompt(prompts, mask.prompt)})
    writer.add(image, results)


def _draw(job: _Job, image_HW3: NDArray[np.uint8], prompts: Prompts, masks: Sequence[FoundMask]) -> Any:
    """Draw the largest masks first, so that what lies inside of them is seen; of a grid only the points that gave one.

    Of what the model found by itself no prompt is drawn, and classes have colours.
    """
    by_area = sorted(masks, key=lambda mask: -compute_area(mask.rle))
    shown: Iterable[int] = range(len(prompts))
    caption, colors = f"{format_count(len(masks), 'mask')} from {format_count(len(prompts), 'prompt')}", None
    if job.prompts == AUTO:
        categories = job.plan.categories
        labels_K = np.array([categories.index(str(mask.label)) for mask in by_area], dtype=np.int64)
        shown, colors = (), visuals.choose_colors(labels_K, len(categories))
        caption = f"{format_count(len(masks), 'object')} found"
    elif job.prompts == GRID:
        shown = [mask.prompt for mask in masks]
        caption = f"{format_count(len(masks), 'mask')} from {format_count(len(prompts), 'point')}"
    if masks:
        word = "score" if job.prompts == AUTO else "predicted IoU"
        caption += f", mean {word} {np.mean([mask.score for mask in masks]):.3f}"
    return visuals.draw_prediction(
        image_HW3,
        (mask.rle for mask in by_area),
        ((prompts.coords_NP2[index], prompts.labels_NP[index]) for index in shown),
        caption,
        colors=colors,
    )


def _record(job: _Job) -> None:
    """Write into ``run.json`` what came of the images, and upload what was made; of a stopped run, what there is."""
    context = job.context
    about = {"source": str(context.cfg.source or context.cfg.data.root), "prompts_from": job.prompts}
    context.folder.update_run_json(predict=about | job.describe())
    for path in (job.writer.predictions, job.writer.image_list, context.folder.overlays):
        context.tracker.log_artifact(path)


def _tell(job: _Job) -> None:
    cfg, totals, skips = job.context.cfg, job.totals, job.skips
    title = f"{cfg.model.name} on {name_data(cfg)}"
    table = PlainTable(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    metrics = totals.metrics
    for name in ("images", "prompts", "masks"):
        table.add_row(name, f"{metrics[f'predict/{name}']:.0f}")
    if totals.scores:
        table.add_row(
            "mean score" if job.prompts == AUTO else "mean predicted IoU", f"{metrics['predict/mean_score']:.4f}"
        )
    table.add_row("time an image", f"{metrics['predict/seconds_per_image']:.3f} s")
    console.print(table)
    if job.plan.annotated:
        log_line(f"images whose objects all have masks: {job.plan.annotated}")
    if job.plan.without_prompts:
        log_line(f"images without prompts in {cfg.prompts}, passed over: {job.plan.without_prompts}")
    left_out = {
        "empty": totals.empty,
        "below the lowest score": totals.weak,
        "that change with the threshold": totals.unstable,
        "overlapping a better one": totals.overlapping,
    }
    if any(left_out.values()):
        log_line(f"masks left out: {', '.join(f'{count} {reason}' for reason, count in left_out.items() if count)}")
    if (totals.weak or totals.unstable) and not totals.scores:
        keys = {AUTO: "predict.auto_score", GRID: "predict.grid_min_score"}
        key = keys.get(job.prompts, "predict.min_score")
        key = "predict.grid_stability" if totals.unstable else key
        log_line(
            f"no mask scored well enough: lower {key}, or fine-tune the model on images like these", style="yellow"
        )
    if skips.counts:
        reasons = [f"{count} x {reason} ({skips.examples[reason]})" for reason, count in order_by_count(skips.counts)]
        log_line(f"images passed over: {', '.join(reasons)}", style="yellow")
    for note in describe_remarks([skips]):
        log_line(note)
    log_line(f"masks: {job.writer.predictions}")
