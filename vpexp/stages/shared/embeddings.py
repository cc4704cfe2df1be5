"""The embedding cache of a stage: opened, filled, reported and recorded."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from vpexp.console import format_count, log_line
from vpexp.data.annotations import AnnotatedDataset, ImagePlace, list_places, with_objects
from vpexp.devices import CPU, CUDA, Precision, choose_device, find_native_bfloat16
from vpexp.embeddings.cache import EmbeddingCache, Encode, EncoderPasses, describe_trouble, encode_images
from vpexp.embeddings.fill import FillReport, ImageEncoder, fill_embeddings
from vpexp.embeddings.plan import EmbeddingPlan, plan_embeddings
from vpexp.embeddings.store import (
    BFLOAT16,
    FLOAT32,
    EmbeddingStore,
    StoredEmbeddings,
    compute_encoder_key,
    compute_entry_bytes,
)
from vpexp.errors import ConfigError
from vpexp.models.registry import get_model_info, list_models
from vpexp.models.sam import Sam
from vpexp.models.tuning import NONE
from vpexp.models.weights import compute_state_hash
from vpexp.stages.shared.context import RunContext

FOLDER = "embeddings"  # below paths.cache_dir
GB = 1e9
IMAGES_AT_ONCE = 8  # on a GPU
# Images of 1024 px from which OpenVINO is worth its conversion. Seconds of one thread, torch and OpenVINO: 0.109 and 0.061 an
# image of SAM micro at 256 px, 4.18 and 2.59 of TinyViT at 1024 px; converting takes 4 and 12 seconds, and more threads
# shorten the passes, not the conversion.
IMAGES_WORTH_CONVERTING = 32
COMPILERS = ("torch._dynamo", "torch._inductor")  # modules of the errors that compiling ends with

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncoderUse:
    """How a run gets its embeddings, and how often it encoded.

    Attributes:
        cache: None where every image is encoded whenever it is used.
        passes: counts the images that went through the encoder.
        before: those before the run was interrupted.
    """

    cache: EmbeddingCache | None
    passes: EncoderPasses
    before: int = 0

    @property
    def stored(self) -> StoredEmbeddings | None:
        """What data sets read instead of pixels."""
        return self.cache.stored if self.cache else None

    def add(self, images: int, encoded: int) -> None:
        """Add what another process of the training counted: encoder passes, and those for want of a stored embedding."""
        self.passes.images += images
        if self.cache:
            self.cache.encoded += encoded

    def follow(self, after: "EncoderUse") -> "EncoderUse":
        """Go on with another encoder's embeddings; what was encoded until now counts with what that encodes."""
        return replace(after, before=self.before + self.passes.images)

    def record(self, context: RunContext) -> None:
        """Write the number of images encoded so far, this run's own passes and those of training steps, down."""
        passes = self.before + self.passes.images
        details = context.folder.read_run_json()["cache"]
        if self.cache:
            details["encoded_later"] = self.cache.encoded
        context.folder.update_run_json(encoder_passes=passes, cache=details)
        context.tracker.log_results({"cache/encoder_passes": float(passes)})


def prepare_embeddings(
    context: RunContext,
    sam: Sam,
    dataset: AnnotatedDataset,
    splits: Sequence[str],
    places: Sequence[ImagePlace] = (),
    *,
    learning: bool = False,
    precision: Precision | None = None,
) -> EncoderUse:
    """Encode what is missing in the cache of the images of some splits; say what was done, or why there is no cache.

    Args:
        context: the run.
        sam: in eval mode; it is moved to where the run computes.
        dataset: holds the splits.
        splits: the most important first, for a budget that does not hold all.
        places: images or windows beside those with objects.
        learning: whether all of the encoder is about to learn.
        precision: of the training that they are for; None: they are for something else.
    """
    cfg = context.cfg
    passes = EncoderPasses(sam)
    if cfg.trainer.compile:
        sam.image_encoder.compile()
    before = int(context.folder.read_run_json().get("encoder_passes") or 0) if cfg.resume else 0
    if reason := _find_reason_against(cfg, learning):
        log_line(f"embeddings: not kept ({reason}), each image is encoded whenever it is used")
        context.folder.update_run_json(cache={"enabled": False, "reason": reason})
        return EncoderUse(None, passes, before)
    kept_as = str(cfg.cache.precision)
    started = time.perf_counter()
    size, resize = sam.image_size, sam.interface.resize
    device = choose_device(cfg.trainer)
    computed = choose_computed(cfg, device, precision, find_native_bfloat16(device))
    sam.encoder_dtype = getattr(torch, computed)
    cut = sam.cut
    if cut is not None:
        log_line(
            f"embeddings: kept as they are before block {cut.block + 1} of the image encoder, from which on it learns"
        )
    state_hash = compute_state_hash(sam.image_encoder, without=cut.late_names if cut else ())
    block = cut.block if cut else None
    key = compute_encoder_key(state_hash, size, kept_as, resize, block=block, computed=computed)
    store = EmbeddingStore(context.cache_dir.absolute() / FOLDER, key, sam.kept_shape, kept_as)
    taught = [
        place for split in dict.fromkeys(splits) for place in list_places(with_objects(dataset.splits[split].images))
    ]
    plan = plan_embeddings(store, [*taught, *places], max_bytes=int(cfg.cache.max_gb * GB))
    sam.to(device)
    encoder = _choose_encoder(cfg, sam, passes, len(plan.missing))
    workers = cfg.data.num_workers
    report = fill_embeddings(store, plan, encoder, image_size=size, num_workers=workers, resize=resize)
    seconds = time.perf_counter() - started
    stored = StoredEmbeddings(store, plan.keys, plan.left_out)
    _print_report(stored, plan, report, seconds, cfg.cache.max_gb)
    _record(context, stored, plan, report, seconds=seconds, computed=computed)
    return EncoderUse(EmbeddingCache(sam, stored, writable=report.trouble is None), passes, before)


def describe_need(cfg: DictConfig, images: int) -> str | None:
    """Describe what so many images or tiles take in the cache; None where not their embeddings are kept, or the model is the user's own."""
    name, kept = str(cfg.model.name), cfg.cache.enabled and "image_encoder" in cfg.model.freeze
    if name not in list_models() or not kept or cfg.model.tune != NONE or cfg.adapter.kind != NONE:
        return None
    with torch.device("meta"):
        sam = get_model_info(name).build(int(cfg.model.image_size))
    precision = str(cfg.cache.precision)
    entry = compute_entry_bytes(sam.kept_shape, precision)
    room = int(cfg.cache.max_gb * GB) // entry
    what = format_count(images, "image" if cfg.data.tile is None else "tile")
    held = "them all" if room >= images else f"{room:,} of them, the others are encoded whenever they are used"
    return (
        f"in the cache, {what} of {name} take {_format_size(images * entry)} ({_format_size(entry)} each, "
        f"cache.precision={precision}); cache.max_gb={cfg.cache.max_gb:g} holds {held}"
    )


def choose_computed(cfg: DictConfig, device: torch.device, precision: Precision | None, native: str | None) -> str:
    """Choose what the encoder computes in, float32 or bfloat16; of the two the store has entries of their own.

    Args:
        cfg: its ``cache.compute`` says so, or ``auto``: bfloat16 for a training in it, where the device computes that itself.
        device: where torch encodes.
        precision: of the training; None: there is none.
        native: from ``find_native_bfloat16``.

    Raises:
        ConfigError: bfloat16 is asked of OpenVINO.
    """
    asked, by_openvino = str(cfg.cache.compute), cfg.cache.backend == "openvino"
    if asked == BFLOAT16 and by_openvino and device.type == CPU:
        raise ConfigError("cache.compute=bfloat16: OpenVINO encodes in float32 here; set cache.backend=torch")
    if asked != "auto":
        return asked
    wanted = precision is not None and precision.is_bfloat16 and not by_openvino
    return BFLOAT16 if wanted and native else FLOAT32


def _find_reason_against(cfg: DictConfig, learning: bool) -> str | None:
    if not cfg.cache.enabled:
        return "cache.enabled=false"
    if learning:
        return "all of the image encoder learns; with model.tune=last:<k> what comes before is kept"
    return None


def _build_torch_encode(sam: Sam, device: torch.device, *, compiled: bool) -> Encode:
    def encode(images_B3SS: NDArray[np.float32]) -> NDArray[np.float32]:
        images = torch.from_numpy(images_B3SS)
        if device.type == CUDA:
            images = images.pin_memory()
        try:
            encoded_BCHW: NDArray[np.float32] = encode_images(sam, images.to(device, non_blocking=True)).cpu().numpy()
        except Exception as error:
            if not compiled or not type(error).__module__.startswith(COMPILERS):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"trainer.compile=true: the encoder cannot be compiled here ({reason}); leave it out"
            ) from error
        return encoded_BCHW

    return encode


def _choose_encoder(cfg: DictConfig, sam: Sam, passes: EncoderPasses, missing: int) -> ImageEncoder:
    """Choose what fills the cache: on a CPU, OpenVINO where it is asked for or worth its conversion, else torch."""
    device, backend = next(sam.parameters()).device, str(cfg.cache.backend)

    encode = _build_torch_encode(sam, device, compiled=cfg.trainer.compile)
    if device.type != CPU:
        if backend == "openvino":
            log_line(f"cache.backend=openvino is for CPUs: torch encodes on {device}", style="yellow")
        return ImageEncoder("torch", encode, IMAGES_AT_ONCE)
    if sam.encoder_dtype == torch.bfloat16 or cfg.trainer.compile:
        return ImageEncoder("torch", encode)
    worth = missing * (sam.image_size / 1024) ** 2 >= IMAGES_WORTH_CONVERTING
    if missing and (backend == "openvino" or (backend == "auto" and worth)):
        from vpexp.deploy.openvino_format import build_openvino_encoder

        try:
            run = build_openvino_encoder(sam, threads=cfg.trainer.threads)
        except Exception as error:  # an encoder of the user's own may hold what OpenVINO does not know
            reason = f"this encoder cannot be converted ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            if backend == "openvino":
                raise ConfigError(f"cache.backend=openvino: {reason}; set cache.backend=torch") from error
            log.warning("%s", reason)
        else:
            return ImageEncoder("openvino", passes.count(run))
    return ImageEncoder("torch", encode)


def _print_report(
    stored: StoredEmbeddings, plan: EmbeddingPlan, report: FillReport, seconds: float, max_gb: float
) -> None:
    store, hits = stored.store, plan.found + report.shared
    kept = report.encoded + hits
    parts = [format_count(kept + report.left + report.unreadable + plan.not_kept, "image")]
    if report.encoded:
        parts.append(f"{report.encoded} encoded in {seconds:.1f} s by {report.encoder}")
    parts.append(f"{hits} from the cache")
    if plan.unreadable + report.unreadable:
        parts.append(f"{plan.unreadable + report.unreadable} unreadable")
    if plan.damaged:
        parts.append(f"{format_count(plan.damaged, 'damaged entry', 'damaged entries')} replaced")
    if plan.evicted:
        parts.append(f"{format_count(plan.evicted, 'entry', 'entries')} not used for longest removed")
    log_line(f"embeddings: {', '.join(parts)}, {_format_size(kept * store.entry_bytes)} in {store.root}")
    wanted = plan.needed_bytes // store.entry_bytes
    if plan.not_kept:
        log_line(
            f"embeddings: cache.max_gb={max_gb:g} holds {wanted - plan.not_kept} of the "
            f"{format_count(wanted, 'image')} ({_format_size(plan.needed_bytes)}); the other "
            f"{plan.not_kept} are encoded whenever they are used",
            style="yellow",
        )
    if report.trouble is not None:
        log_line(describe_trouble(stored, report.trouble), style="yellow")
    elif report.left:
        log_line(
            f"embeddings: another process has not finished {format_count(report.left, 'image')}; going on",
            style="yellow",
        )


def _record(
    context: RunContext,
    stored: StoredEmbeddings,
    plan: EmbeddingPlan,
    report: FillReport,
    *,
    seconds: float,
    computed: str,
) -> None:
    numbers = {
        "encoded": report.encoded,
        "hits": plan.found + report.shared,
        "seconds": seconds,
        "not_kept": plan.not_kept,
        "evicted": plan.evicted,
        "damaged": plan.damaged,
    }
    details: dict[str, Any] = {
        "enabled": True,
        **numbers,
        "encoders": {report.encoder: report.encoded} if report.encoded else {},
        "precision": stored.store.precision,
        "computed": computed,
        "folder": str(stored.store.folder),
        "trouble": str(report.trouble) if report.trouble else None,
    }
    context.folder.update_run_json(cache=details)
    context.tracker.log_results({f"cache/{name}": float(value) for name, value in numbers.items()})


def _format_size(size: int) -> str:
    return f"{size / GB:.2f} GB" if size >= GB else f"{size / 1e6:.1f} MB"
