"""``stage=demo``: a local page on which clicks become masks, and kept masks a data set that ``stage=train`` takes."""

import contextlib
import shutil
from pathlib import Path

from vpexp.config.compose import quote_value, quote_word
from vpexp.console import format_count, log_line
from vpexp.data.image_source import SourceImage, find_images, find_source_folder
from vpexp.data.skipped import SkipCounts, order_by_count
from vpexp.demo.folder import hold_folder
from vpexp.demo.store import LabelStore
from vpexp.errors import ConfigError
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import build_tiling
from vpexp.stages.shared.model import load_stage_model
from vpexp.stages.shared.page_learning import build_learner, work_beside


def run(context: RunContext) -> StageResult:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError, DataError: the source has no images, the port is taken, or the folder is another source's.
    """
    try:
        from vpexp.demo.app import LabellingApp
        from vpexp.demo.ordering import Ordering
        from vpexp.demo.proposals import Proposals
        from vpexp.demo.routes import build_app
        from vpexp.demo.server import is_local, name_address, open_socket, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"stage=demo needs {error.name}: pip install 'vpexp[demo]'") from error
    from vpexp.demo.session import LabelSession

    cfg = context.cfg
    folder = find_folder(context)
    images = list_images(context, folder)
    with open_socket(cfg.demo.host, cfg.demo.port) as opened, hold_folder(folder):
        store = LabelStore(folder, images)
        store.check_images(images)
        predictor = load_stage_model(context.cfg, "labelling with").predictor
        settings = context.settings
        tiling, min_score = build_tiling(settings.data), settings.predict.auto_score
        session = LabelSession(predictor, images, kept=cfg.demo.embeddings, tiling=tiling, min_score=min_score)
        learner = build_learner(context, session, store)
        proposals = Proposals(session, store)
        ordering = Ordering(session, proposals, store)
        title = {"model": str(cfg.model.name), "source": str(cfg.source), "folder": _shorten(folder)}
        classes = predictor.instances.labels if predictor.instances else ()
        labels = list(dict.fromkeys([*store.labels.labels, *cfg.demo.labels, *classes]))
        app = build_app(LabellingApp(session, store, title, labels, proposals, ordering, learner), cfg.demo.host)
        address = name_address(cfg.demo.host, opened)
        if not is_local(opened):
            log_line(
                f"demo.host={cfg.demo.host}: whoever reaches this machine sees the images and can label", style="yellow"
            )
        before = len(store.labels.masks)
        try:
            with contextlib.suppress(KeyboardInterrupt):  # from the moment on that the line says what it does
                log_line(
                    f"label {format_count(len(images), 'image')} at {address} (Ctrl-C ends; every kept mask is saved at once)"
                )
                with work_beside(ordering, learner):
                    serve(app, opened, address if cfg.demo.open_browser else None)
        except SystemExit:
            context.tracker.log_results(_record(context, store, before).metrics)
            raise
        return _record(context, store, before)


def find_folder(context: RunContext) -> Path:
    """Find the folder of the data set: the configured one, or one named after the source, the same every time."""
    cfg = context.cfg
    if cfg.demo.folder:
        return Path(cfg.demo.folder).expanduser().resolve()
    name = find_source_folder(cfg.source).resolve().name or "images"
    return (context.output_dir / "labels" / name).resolve()


def list_images(context: RunContext, folder: Path) -> list[SourceImage]:
    """List the images to label; where the data set lies inside of the source, its own are none of them."""
    cfg = context.cfg
    skips = SkipCounts(strict=cfg.data.strict)
    found = find_images(cfg.source, leave_out=context.output_dir, skips=skips, allow_outside=cfg.data.allow_outside)
    for reason, count in order_by_count(skips.counts):
        log_line(f"passed over: {count} x {reason} ({skips.examples[reason]})", style="yellow")
    others = [image for image in found if folder not in image.path.resolve().parents]
    return others or found  # or the source is the data set's own image folder


def _shorten(folder: Path) -> str:
    """Name a folder as people would who work where the server was started."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _record(context: RunContext, store: LabelStore, before: int) -> StageResult:
    """Report and record what was labelled."""
    masks = len(store.labels.masks)
    metrics = {
        "demo/images_labelled": float(len(store.labels.count_by_image())),
        "demo/masks": float(masks),
        "demo/masks_added": float(masks - before),
    }
    root = quote_word(f"data.root={quote_value(store.folder)}")
    then = f"; train on them: python -m vpexp stage=train data=auto {root}" if masks else ""
    log_line(
        f"{format_count(len(store.labels.count_by_image()), 'image')} labelled, {format_count(masks, 'mask')} kept ({masks - before:+d} now), "
        f"in {store.folder}{then}"
    )
    context.folder.update_run_json(demo={"folder": str(store.folder), "masks": masks, "added": masks - before})
    artifacts = {}
    if store.annotations.is_file():
        context.tracker.log_artifact(Path(shutil.copy(store.annotations, context.folder.path)))
        artifacts["annotations"] = store.annotations
    return StageResult(metrics, artifacts, context.folder.path)
