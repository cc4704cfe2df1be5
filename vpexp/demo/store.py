"""Kept masks on disk: a COCO data set that is whole at every moment, and that any number of pages may write to.

    <folder>/annotations/instances_train.json    one entry a line; replaced as a whole by every change
             images/train/<name>                 the labelled images: links to the files of the source, or copies
             .lock                               held by the server that labels into the folder

A change returns when it is on disk. A process that is killed leaves the file as it was before or after its last change.
"""

import filecmp
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from vpexp.data.annotations import SCORE_DIGITS, Rle
from vpexp.data.image_source import SourceImage
from vpexp.demo.labels import Entry, KeptMask, LabelSet, build_annotation, read_labels, read_mask
from vpexp.demo.session import PictureChangedError
from vpexp.errors import CheckpointError, ConfigError, OutputError
from vpexp.files import write_text
from vpexp.runfolder import RunFolder

ANNOTATIONS = Path("annotations", "instances_train.json")
IMAGES = Path("images", "train")
DRAFT = re.compile(r"\..+\.[A-Za-z]+\.\d+")  # of a file that is written beside its place, by a process of that number


SAME_OBJECT = 0.5
"""IoU with a kept mask above which a mask that was found is of the same object."""


@dataclass(frozen=True, slots=True)
class NewMask:
    """A mask to keep.

    Attributes:
        label: what it shows.
        rle: at the size of the image as it is shown.
        score: the predicted IoU, or what the model that found it gave it.
        prompt: what gave the mask.
    """

    label: str
    rle: Rle
    score: float
    prompt: Mapping[str, Any]


class UnknownMaskError(LookupError):
    """A mask that is not there: another page deleted it."""


class LabelStore:
    """Keeps masks in a folder.

    Args:
        folder: of the data set; made with the first mask. What it holds already is gone on with.

    Raises:
        DataError: its annotation file cannot be gone on with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.annotations = folder / ANNOTATIONS
        self.labels = LabelSet(head={"info": {"description": "labelled with vpexp"}})
        if self.annotations.is_file():
            self.labels = read_labels(self.annotations)
        self._lock = threading.Lock()
        self._session = secrets.token_hex(4)
        self._changes = 0
        self._deleted: dict[int, tuple[KeptMask, str, Entry]] = {}
        # ids are never given twice in a session, so that what one page deletes never becomes what another one keeps
        self._last_mask = max(self.labels.masks, default=0)
        self._image_ids = {name: int(entry["id"]) for name, entry in self.labels.images.items()}

    @property
    def version(self) -> str:
        """Name the present state; a page that knows another one asks again."""
        return f"{self._session}-{self._changes}"

    def check_images(self, images: Iterable[SourceImage]) -> None:
        """Check that images of the same name are the same images.

        Raises:
            ConfigError: the folder was labelled from another source.
        """
        for image in images:
            place = self.folder / IMAGES / image.name
            if image.name in self.labels.images and place.is_file() and not _is_same(image.path, place):
                raise ConfigError(
                    f"demo.folder={self.folder}: its {image.name} is another image than {image.path}; "
                    "give this source a folder of its own: demo.folder=..."
                )

    def keep(
        self, image: SourceImage, label: str, rle: Rle, *, score: float, prompt: Mapping[str, Any], uid: str
    ) -> KeptMask:
        """Keep a mask; one that was kept under the same ``uid`` before is returned as it is.

        Args:
            image: which image.
            label: what the mask shows.
            rle: at the size of the image as it is shown.
            score: the predicted IoU.
            prompt: what gave the mask.
            uid: the page's own name of it, so that a request that is sent again keeps nothing twice.

        Raises:
            OutputError: it cannot be written; nothing was kept.
        """
        with self._lock:
            found = self.labels.find(uid) or self._add(image, [NewMask(label, rle, score, prompt)], uid)
            return found[0]

    def keep_new(self, image: SourceImage, masks: Sequence[NewMask], uid: str) -> list[KeptMask]:
        """Keep those masks of an image that are of no object that has a mask, in one change, under one ``uid``.

        Returns:
            What was kept; what was kept under this ``uid`` before.

        Raises:
            OutputError: it cannot be written; nothing was kept.
        """
        with self._lock:
            if found := self.labels.find(uid):
                return found
            entries = [mask.entry for mask in self.labels.list_masks(image.name)] if masks else []
            kept = [rle for entry in entries if (rle := read_mask(entry, *masks[0].rle["size"])) is not None]
            if kept:
                overlap_K = coco_mask.iou([mask.rle for mask in masks], kept, [0] * len(kept)).max(axis=1)
                masks = [mask for mask, overlap in zip(masks, overlap_K, strict=True) if overlap <= SAME_OBJECT]
            return self._add(image, masks, uid)

    def delete(self, number: int, uid: str | None = None) -> None:
        """Take a mask away.

        Args:
            number: its id.
            uid: the page's name of it, where the page gave it one: after a restart another mask may have the id of one that was
                deleted, and a page that was open all the time shall not meet that one.

        Raises:
            UnknownMaskError: it is not there.
            OutputError: it cannot be written; nothing was changed.
        """
        with self._lock:
            self._delete([self._find(number, uid)])

    def delete_all(self, uid: str) -> None:
        """Take all masks away that were kept under one ``uid``, in one change; errors as of ``delete``."""
        with self._lock:
            masks = self.labels.find(uid)
            if not masks:
                raise UnknownMaskError("these masks are not there any more")
            self._delete(masks)

    def restore(self, number: int, uid: str | None = None) -> None:
        """Bring a mask back that was deleted in this session, unless it is there; arguments and errors as of ``delete``."""
        with self._lock:
            if number in self.labels.masks:
                self._find(number, uid)
                return
            if number not in self._deleted:
                raise UnknownMaskError(f"mask {number} was not deleted in this session")
            self._restore([number])

    def restore_all(self, uid: str) -> None:
        """Bring all masks back that were kept under one ``uid`` and deleted in this session, unless they are there."""
        with self._lock:
            numbers = [number for number, (mask, *_) in self._deleted.items() if mask.entry.get("uid") == uid]
            if numbers:
                self._restore(numbers)
            elif not self.labels.find(uid):
                raise UnknownMaskError("these masks were not deleted in this session")

    def relabel(self, number: int, label: str, uid: str | None = None) -> None:
        """Report that a mask shows something else; arguments and errors as of ``delete``."""
        with self._lock:
            labels = self.labels.with_label(label)
            entry = {**self._find(number, uid).entry, "category_id": labels.labels[label]}
            self._write(labels.with_masks([KeptMask.of(entry)]))

    def _find(self, number: int, uid: str | None) -> KeptMask:
        mask = self.labels.masks.get(number)
        if mask is None or (uid is not None and mask.entry.get("uid") != uid):
            raise UnknownMaskError(f"mask {number} is not there any more")
        return mask

    def _add(self, image: SourceImage, masks: Sequence[NewMask], uid: str) -> list[KeptMask]:
        if not masks:
            return []
        image_id = self._image_ids.get(image.name, max(self._image_ids.values(), default=0) + 1)
        height, width = masks[0].rle["size"]
        labels = self.labels.with_image(image.name, height, width, image_id)
        kept = []
        for number, mask in enumerate(masks, self._last_mask + 1):
            labels = labels.with_label(mask.label)
            extra = {"score": round(mask.score, SCORE_DIGITS), "prompt": dict(mask.prompt), "uid": uid}
            kept.append(KeptMask.of(build_annotation(number, image_id, labels.labels[mask.label], mask.rle, extra)))
        self._write(labels.with_masks(kept), image)
        self._last_mask += len(kept)
        self._image_ids[image.name] = image_id
        return kept

    def _delete(self, masks: Sequence[KeptMask]) -> None:
        images = {entry["id"]: (name, entry) for name, entry in self.labels.images.items()}
        gone = {mask.entry["id"]: (mask, *images[mask.entry["image_id"]]) for mask in masks}
        self._write(self.labels.without_masks(gone))
        self._deleted |= gone

    def _restore(self, numbers: Sequence[int]) -> None:
        found = [self._deleted[number] for number in numbers]
        images = {**self.labels.images, **{name: entry for _, name, entry in found}}
        self._write(replace(self.labels, images=images).with_masks(mask for mask, *_ in found))
        for number in numbers:
            del self._deleted[number]

    def _write(self, labels: LabelSet, image: SourceImage | None = None) -> None:
        """Write a changed set, the image before the file that names it."""
        try:
            if image is not None:
                _place(image.path, self.folder / IMAGES / image.name, is_labelled=image.name in self.labels.images)
            self.annotations.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.annotations, "".join(labels.write()), durable=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written, nothing was saved: {error.strerror}") from error
        self.labels = labels
        self._changes += 1


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from labelling into a folder; to be held before it is read.

    Raises:
        ConfigError: one does already.
        OutputError: the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunFolder(folder).hold())
            _remove_drafts(folder)
        except CheckpointError as error:
            raise ConfigError(
                f"demo.folder={folder}: another server labels into it; end that one, or give another folder"
            ) from error
        except OSError as error:
            raise OutputError(f"demo.folder={folder} cannot be written: {error.strerror}") from error
        yield


def _place(source: Path, place: Path, *, is_labelled: bool) -> None:
    """Put an image into the data set: a hard link where the file system can, which takes no space and cannot dangle.

    Raises:
        PictureChangedError: another picture of this name was labelled.
    """
    if place.exists():
        if _is_same(source, place):
            return
        if is_labelled:
            raise PictureChangedError(
                f"{place} is another picture than {source} and has masks: label this one elsewhere"
            )
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, place)
    except FileExistsError:
        return
    except OSError:
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        shutil.copy2(source, draft)
        draft.replace(place)


def _remove_drafts(folder: Path) -> None:
    """Remove what a process that was killed has left half written; to be called while the folder is held."""
    for place in (ANNOTATIONS.parent, IMAGES):
        for path in (folder / place).rglob(".*"):
            if DRAFT.fullmatch(path.name) and path.is_file():
                path.unlink()


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second) or filecmp.cmp(first, second)
    except OSError:
        return False
