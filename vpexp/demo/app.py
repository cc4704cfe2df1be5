"""What the labelling page is answered. Images are asked for by their number: no path ever comes from a request."""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from vpexp.data.annotations import Rle
from vpexp.data.image_source import SourceImage
from vpexp.data.masks import rle_to_json
from vpexp.demo.labels import EDITED, KeptMask
from vpexp.demo.learning import Learner
from vpexp.demo.ordering import Ordering
from vpexp.demo.pictures import build_picture, read_size
from vpexp.demo.proposals import Proposals
from vpexp.demo.requests import BY_HAND, read_label, read_masks, read_pixels, read_text, read_version
from vpexp.demo.server import RequestError
from vpexp.demo.session import Answer, LabelSession
from vpexp.demo.steps import Steps, describe_steps, parse_steps
from vpexp.demo.store import LabelError, LabelStore

DIGITS = 4  # of scores


@dataclass(frozen=True, slots=True)
class LabellingApp:
    """Answers requests.

    Attributes:
        session: the model.
        store: the kept masks.
        title: what the page calls the model and the source.
        labels: what masks may be called; pages change it.
        proposals: what the model proposes; None: nothing.
        ordering: which image is next; None: that is by name alone.
        learner: learns from what is kept; None: nothing does.
    """

    session: LabelSession
    store: LabelStore
    title: dict[str, str]
    labels: list[str] = field(default_factory=list)
    proposals: Proposals | None = None
    ordering: Ordering | None = None
    learner: Learner | None = None

    def list_images(self, request: Request, content: Any) -> Any:
        """Describe what is labelled with what: once a page."""
        del request, content
        names = [image.name for image in self.session.images]
        return {**self.title, "images": names, "orders": self.ordering is not None, **self._describe_state()}

    def read_state(self, request: Request, content: Any) -> Any:
        """Describe what has changed since a version, by other pages or by learning."""
        del content
        if request.query_params.get("version") == self._version:
            return {"version": self._version}
        return self._describe_state()

    def read_order(self, request: Request, content: Any) -> Any:
        """List the images that are not labelled yet, those first that promise most."""
        del request, content
        return {"images": self.ordering.list_next() if self.ordering else []}

    def read_image(self, request: Request, content: Any) -> Any:
        """Describe an image and its kept masks."""
        del content
        image = self._find_image(request)
        stamp = self.session.open(int(request.path_params["index"]), ahead="ahead" in request.query_params)
        height, width = read_size(image.path)
        about = {"name": image.name, "stamp": stamp, "height": height, "width": width}
        changes = self.store.changes  # before what they made
        masks = [self._describe_mask(mask, rle) for mask, rle in self.store.list_rles(image.name, height, width)]
        return {**about, "changes": changes, "masks": masks}

    def send_picture(self, request: Request, content: Any) -> Any:
        """Send the image itself."""
        del content
        picture, media_type = build_picture(self._find_image(request).path)
        return Response(picture, media_type=media_type)

    def encode(self, request: Request, content: Any) -> Any:
        """Encode an image, so that clicks on it are answered at once; ``ahead``: it is not shown yet."""
        self._find_image(request)
        started = time.perf_counter()
        self.session.encode(request.path_params["index"], ahead=content.get("ahead") is True)
        return {"seconds": round(time.perf_counter() - started, 3)}

    def segment(self, request: Request, content: Any) -> Any:
        """Answer the steps taken on one object."""
        _, answer = self._segment(request, content)
        described = {"mask": rle_to_json(answer.rle), "iou": round(answer.iou, DIGITS), "area": answer.area}
        scores = [round(score, DIGITS) for score in answer.scores]
        return described | {"choice": answer.choice, "scores": scores, "version": answer.version}

    def keep(self, request: Request, content: Any) -> Any:
        """Keep the mask that the steps give, or one that was drawn."""
        label, uid = read_label(content), read_text(content, "uid")
        image = self._find_image(request)
        score: float | None = None
        prompt: dict[str, Any] = dict(BY_HAND)
        if "mask" in content:
            self._check_picture(request, content)
            rle = read_pixels(content, *read_size(image.path))
        else:
            steps, answer = self._segment(request, content, read_version(content))
            if not answer.area:
                raise RequestError(409, "the mask is empty: click inside the object, or draw a box around it")
            rle, score, prompt = answer.rle, answer.iou, describe_steps(steps)
        self._check_picture(request, content)  # once more, after it was read
        mask = self.store.keep(image, label, rle, score=score, prompt=prompt, uid=uid)
        self._add_label(label)
        return self._describe_change([(mask, rle)])

    def propose(self, request: Request, content: Any) -> Any:
        """Propose masks of what is not kept yet."""
        del content
        self._find_image(request)
        if self.proposals is None or not self.session.can_find:
            return {"masks": [], "threshold": 0.0, "version": self.session.model.version}
        proposed = self.proposals.propose(request.path_params["index"])
        masks = [
            {
                "label": one.label,
                "score": round(one.score or 0.0, DIGITS),
                "prompt": one.prompt,
                "mask": rle_to_json(one.rle),
            }
            for one in proposed.masks
        ]
        return {"masks": masks, "threshold": round(proposed.threshold, DIGITS), "version": proposed.version}

    def accept(self, request: Request, content: Any) -> Any:
        """Keep what was proposed, less what has a mask by now."""
        uid, image = read_text(content, "uid"), self._find_image(request)
        self._check_picture(request, content)
        size = read_size(image.path)
        new = self.store.keep_new(image, read_masks(content, *size), uid)
        lines = {mask.line for mask in new}
        kept = [(mask, rle) for mask, rle in self.store.list_rles(image.name, *size) if mask.line in lines]
        change = self._describe_change(kept)
        for mask in change["masks"]:
            self._add_label(mask["label"])
        return change

    def reject(self, request: Request, content: Any) -> Any:
        """Propose a mask no more; with ``back``: again."""
        rle = read_pixels(content, *read_size(self._find_image(request).path))
        if self.proposals is None:
            raise RequestError(409, "nothing is proposed here")
        change = self.proposals.take_back if content.get("back") is True else self.proposals.reject
        change(request.path_params["index"], rle)
        return {}

    def set_done(self, request: Request, content: Any) -> Any:
        """Mark an image as labelled whole, or not."""
        image = self._find_image(request)
        if not isinstance(content.get("done"), bool):
            raise RequestError(400, "done must be true or false")
        self._check_picture(request, content)
        self.store.set_done(image, *read_size(image.path), done=content["done"])
        return self._describe_change()

    def delete_all(self, request: Request, content: Any) -> Any:
        """Delete what was accepted at once."""
        del content
        self.store.delete_all(read_text(request.query_params, "uid"))
        return self._describe_change()

    def restore_all(self, request: Request, content: Any) -> Any:
        """Bring back what was accepted at once."""
        del content
        self.store.restore_all(read_text(request.query_params, "uid"))
        return self._describe_change()

    def delete(self, request: Request, content: Any) -> Any:
        """Delete a kept mask."""
        del content
        self.store.delete(request.path_params["number"], request.query_params.get("uid"))
        return self._describe_change()

    def restore(self, request: Request, content: Any) -> Any:
        """Bring a deleted mask back."""
        del content
        self.store.restore(request.path_params["number"], request.query_params.get("uid"))
        return self._describe_change()

    def relabel(self, request: Request, content: Any) -> Any:
        """Give a kept mask another label."""
        label = read_label(content)
        self.store.relabel(request.path_params["number"], label, request.query_params.get("uid"))
        self._add_label(label)
        return self._describe_change()

    def reshape(self, request: Request, content: Any) -> Any:
        """Give a kept mask the pixels that were drawn; or its own again, without the parts that it was split into."""
        number, uid = request.path_params["number"], request.query_params.get("uid")
        rle = read_pixels(content, *self._read_size_of(number, uid))
        without = read_text(content, "without") if "without" in content else None
        self.store.reshape(number, rle, uid, edited=content.get("edited", True) is True, without=without)
        return self._describe_change()

    def split(self, request: Request, content: Any) -> Any:
        """Split a kept mask into its connected parts."""
        number, uid = request.path_params["number"], request.query_params.get("uid")
        size = self._read_size_of(number, uid)
        mask = self.store.find(number, uid)
        name = self.store.name_image(mask)
        rle = {one.line: rle for one, rle in self.store.list_rles(name, *size)}[mask.line]
        if rle is None:
            raise RequestError(409, f"mask {number} has no pixels that can be split")
        parts = {mask.line for mask in self.store.split(number, rle, read_text(content, "uid"), uid)}
        found = [(mask, pixels) for mask, pixels in self.store.list_rles(name, *size) if mask.line in parts]
        return self._describe_change(found)

    def add_label(self, request: Request, content: Any) -> Any:
        """Offer a further label; it is written with its first mask."""
        del request
        self._add_label(read_label(content))
        return self._describe_state()

    def rename_label(self, request: Request, content: Any) -> Any:
        """Give a label another name, and so the masks that have it."""
        del request
        label, name = read_label(content), read_label(content, "name")
        place = self._find_label(label)
        if name in self.labels:
            raise LabelError(f"there is a label {name} already: select masks, and give them that one")
        self.store.rename_label(label, name)
        self.labels[place] = name
        return self._describe_state()

    def drop_label(self, request: Request, content: Any) -> Any:
        """Offer a label no more that no mask has."""
        del request
        label = read_label(content)
        place = self._find_label(label)
        if len(self.labels) == 1:
            raise LabelError("one label must stay: add another one before this one goes")
        self.store.drop_label(label)
        del self.labels[place]
        return self._describe_state()

    def steer_learning(self, request: Request, content: Any) -> Any:
        """Stop learning, go on with it, or take up the model before."""
        del content
        actions: dict[str, Callable[[], None]] = {}
        if self.learner:
            actions = {"stop": self.learner.stop, "start": self.learner.start, "undo": self.learner.undo}
        action = actions.get(request.path_params["action"])
        if action is None:
            raise RequestError(404, "nothing learns here")
        action()
        return self._describe_state()

    @property
    def _version(self) -> str:
        learnt = self.learner.version if self.learner else 0
        return f"{self.store.version}-{zlib.crc32(repr(self.labels).encode()):x}-{self.session.model.version}-{learnt}"

    def _add_label(self, label: str) -> None:
        if label not in self.labels:
            self.labels.append(label)

    def _find_label(self, label: str) -> int:
        if label not in self.labels:
            raise LabelError(f"there is no label {label} any more")
        return self.labels.index(label)

    def _describe_state(self) -> dict[str, Any]:
        changes, version = (
            self.store.changes,
            self._version,
        )  # before what it names, or a change between the two would never be seen
        counts, done = self.store.labels.count_by_image(), set(self.store.labels.done)
        images = list(enumerate(image.name for image in self.session.images))
        return {
            "version": version,
            "changes": changes,
            "counts": {str(index): counts[name] for index, name in images if name in counts},
            "done": [index for index, name in images if name in done],
            "labels": list(self.labels),
            "find": self.session.can_find,
            "model_version": self.session.model.version,
            "learning": self.learner.describe() if self.learner else None,
        }

    def _describe_change(self, masks: Sequence[tuple[KeptMask, Rle | None]] = ()) -> dict[str, Any]:
        """Describe what a change made, and how many there were by then."""
        changes = self.store.changes
        return {"masks": [self._describe_mask(mask, rle) for mask, rle in masks], "changes": changes}

    def _describe_mask(self, mask: KeptMask, rle: Rle | None) -> dict[str, Any]:
        entry = mask.entry
        return {
            "id": entry["id"],
            "uid": entry.get("uid"),
            "label": str(self.store.labels.categories[entry["category_id"]]["name"]),
            "score": entry.get("score"),
            "edited": bool(entry.get(EDITED)),
            "mask": None if rle is None else rle_to_json(rle),
        }

    def _find_image(self, request: Request) -> SourceImage:
        index = int(request.path_params["index"])
        if index >= len(self.session.images):
            raise RequestError(404, f"there is no image {index}")
        return self.session.images[index]

    def _read_size_of(self, number: int, uid: str | None) -> tuple[int, int]:
        """Read the (height, width) of the image of a mask."""
        name = self.store.name_image(self.store.find(number, uid))
        found = [image.path for image in self.session.images if image.name == name]
        if not found:
            raise RequestError(409, f"{name} is no image of this source: the mask stays as it is")
        return read_size(found[0])

    def _segment(self, request: Request, content: Any, version: int | None = None) -> tuple[Steps, Answer]:
        self._find_image(request)
        self._check_picture(request, content)
        index = request.path_params["index"]
        steps = parse_steps(content.get("steps"), *self.session.encode(index).original_hw)
        return steps, self.session.segment(index, steps, version)

    def _check_picture(self, request: Request, content: Any) -> None:
        """Check that the picture is what the page shows: it sends the stamp that it was given with the picture."""
        stamp = content.get("stamp")
        self.session.check(int(request.path_params["index"]), stamp if isinstance(stamp, str) else None)
