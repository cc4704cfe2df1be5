"""The routes of the labelling page. Images are asked for by their number: no path ever comes from a request."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vpexp.data.image_files import ImageFileError
from vpexp.data.image_source import SourceImage
from vpexp.demo.labels import Entry, read_mask
from vpexp.demo.server import Guard, Reply, RequestError, build_error
from vpexp.demo.session import (
    Answer,
    LabelSession,
    PictureChangedError,
    StepError,
    Steps,
    build_picture,
    describe_steps,
    parse_steps,
    read_size,
)
from vpexp.demo.store import LabelStore, NewMask, UnknownMaskError
from vpexp.errors import OutputError
from vpexp.inference.coco_results import describe_prompt

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024  # of a request; the steps of one object take some hundred
LONGEST_NAME = 100  # of a label, or of the page's own name of a mask
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

STATUS: dict[type[Exception], int] = {
    StepError: 400,
    UnknownMaskError: 404,
    PictureChangedError: 409,
    ImageFileError: 422,
    OutputError: 507,
}
"""What a request meets that its sender, or the user, can mend."""

Answerer = Callable[[Request, Any], Any]


@dataclass(frozen=True, slots=True)
class LabellingApp:
    """Answers requests.

    Attributes:
        session: the model.
        store: the kept masks.
        title: what the page calls the model and the source.
        labels: what masks may be called; pages add to it.
    """

    session: LabelSession
    store: LabelStore
    title: dict[str, str]
    labels: list[str] = field(default_factory=list)

    def list_images(self, request: Request, content: Any) -> Any:
        """Describe what is labelled with what: once a page."""
        del request, content
        names = [image.name for image in self.session.images]
        return {**self.title, "images": names, "find": self.session.can_find, **self._describe_state()}

    def read_state(self, request: Request, content: Any) -> Any:
        """Describe what other pages have changed since a version."""
        del content
        if request.query_params.get("version") == self._version:
            return {"version": self._version}
        return self._describe_state()

    def read_image(self, request: Request, content: Any) -> Any:
        """Describe an image and its kept masks."""
        del content
        image = self._find_image(request)
        stamp = self.session.open(int(request.path_params["index"]))
        height, width = read_size(image.path)
        masks = [self._describe_mask(mask.entry, height, width) for mask in self.store.labels.list_masks(image.name)]
        return {"name": image.name, "stamp": stamp, "height": height, "width": width, "masks": masks}

    def send_picture(self, request: Request, content: Any) -> Any:
        """Send the image itself."""
        del content
        picture, media_type = build_picture(self._find_image(request).path)
        return Response(picture, media_type=media_type)

    def encode(self, request: Request, content: Any) -> Any:
        """Encode an image, so that clicks on it are answered at once."""
        del content
        self._find_image(request)
        started = time.perf_counter()
        self.session.encode(request.path_params["index"])
        return {"seconds": round(time.perf_counter() - started, 3)}

    def segment(self, request: Request, content: Any) -> Any:
        """Answer the steps taken on one object."""
        _, answer = self._segment(request, content)
        described = {"mask": _describe_rle(answer.rle), "iou": round(answer.iou, 4), "area": answer.area}
        return described | {"choice": answer.choice, "scores": [round(score, 4) for score in answer.scores]}

    def keep(self, request: Request, content: Any) -> Any:
        """Keep the mask that the steps give."""
        label, uid = _read_label(content), _read_text(content, "uid")
        steps, answer = self._segment(request, content)
        if not answer.area:
            raise RequestError(409, "the mask is empty: click inside the object, or draw a box around it")
        image = self._find_image(request)
        self._check_picture(request, content)  # once more, after it was read
        mask = self.store.keep(image, label, answer.rle, score=answer.iou, prompt=describe_steps(steps), uid=uid)
        self._add_label(label)
        return {"mask": self._describe_mask(mask.entry, *answer.rle["size"])}

    def find(self, request: Request, content: Any) -> Any:
        """Find the objects of an image, and keep those that have no mask yet."""
        uid = _read_text(content, "uid")
        image = self._find_image(request)
        if not self.session.can_find:
            raise RequestError(
                409, "this model cannot find objects by itself: stage=train learns it (prompter=default)"
            )
        self._check_picture(request, content)
        prompts, found = self.session.find(request.path_params["index"])
        self._check_picture(request, content)  # once more, after it was read
        masks = []
        for one in found:
            prompt = describe_prompt(prompts, one.prompt)
            del prompt["index"]
            masks.append(NewMask(str(one.label), one.rle, one.score, prompt))
        new = self.store.keep_new(image, masks, uid)
        kept = [self._describe_mask(mask.entry, *mask.entry["segmentation"]["size"]) for mask in new]
        for mask in kept:
            self._add_label(mask["label"])
        return {"masks": kept}

    def delete_all(self, request: Request, content: Any) -> Any:
        """Delete what was found at once."""
        del content
        self.store.delete_all(_read_text(request.query_params, "uid"))
        return {}

    def restore_all(self, request: Request, content: Any) -> Any:
        """Bring back what was found at once."""
        del content
        self.store.restore_all(_read_text(request.query_params, "uid"))
        return {}

    def delete(self, request: Request, content: Any) -> Any:
        """Delete a kept mask."""
        del content
        self.store.delete(request.path_params["number"], request.query_params.get("uid"))
        return {}

    def restore(self, request: Request, content: Any) -> Any:
        """Bring a deleted mask back."""
        del content
        self.store.restore(request.path_params["number"], request.query_params.get("uid"))
        return {}

    def relabel(self, request: Request, content: Any) -> Any:
        """Give a kept mask another label."""
        label = _read_label(content)
        self.store.relabel(request.path_params["number"], label, request.query_params.get("uid"))
        self._add_label(label)
        return {}

    def add_label(self, request: Request, content: Any) -> Any:
        """Offer a further label; it is written with its first mask."""
        del request
        self._add_label(_read_label(content))
        return self._describe_state()

    @property
    def _version(self) -> str:
        return f"{self.store.version}-{len(self.labels)}"

    def _add_label(self, label: str) -> None:
        if label not in self.labels:
            self.labels.append(label)

    def _describe_state(self) -> dict[str, Any]:
        version = self._version  # before what it names, or a change between the two would never be seen
        counts = self.store.labels.count_by_image()
        numbered = {
            str(index): counts[image.name] for index, image in enumerate(self.session.images) if image.name in counts
        }
        return {"version": version, "counts": numbered, "labels": list(self.labels)}

    def _describe_mask(self, entry: Entry, height: int, width: int) -> dict[str, Any]:
        rle = read_mask(entry, height, width)
        return {
            "id": entry["id"],
            "uid": entry.get("uid"),
            "label": str(self.store.labels.categories[entry["category_id"]]["name"]),
            "score": entry.get("score"),
            "mask": None if rle is None else _describe_rle(rle),
        }

    def _find_image(self, request: Request) -> SourceImage:
        index = int(request.path_params["index"])
        if index >= len(self.session.images):
            raise RequestError(404, f"there is no image {index}")
        return self.session.images[index]

    def _segment(self, request: Request, content: Any) -> tuple[Steps, Answer]:
        self._find_image(request)
        self._check_picture(request, content)
        index = request.path_params["index"]
        steps = parse_steps(content.get("steps"), *self.session.encode(index).original_hw)
        return steps, self.session.segment(index, steps)

    def _check_picture(self, request: Request, content: Any) -> None:
        """Check that the picture is what the page shows: it sends the stamp that it was given with the picture."""
        stamp = content.get("stamp")
        self.session.check(int(request.path_params["index"]), stamp if isinstance(stamp, str) else None)


class _NumberConvertor(IntegerConvertor):
    """Numbers of images and masks; longer ones name nothing."""

    regex = "[0-9]{1,12}"


def build_app(labelling: LabellingApp, host: str) -> Starlette:
    """Build the web application.

    Args:
        labelling: what answers.
        host: where it is served, as configured.
    """
    register_url_convertor("number", _NumberConvertor())
    get, post = ["GET"], ["POST"]
    routes = [
        Route("/", _serve_page("index.html"), methods=get),
        *(Route(f"/page/{name}", _serve_page(name), methods=get) for name in _list_page()),
        Route("/api/images", _answer(labelling.list_images), methods=get),
        Route("/api/state", _answer(labelling.read_state), methods=get),
        Route("/api/labels", _answer(labelling.add_label), methods=post),
        Route("/api/images/{index:number}", _answer(labelling.read_image), methods=get),
        Route("/api/images/{index:number}/picture", _answer(labelling.send_picture), methods=get),
        Route("/api/images/{index:number}/encode", _answer(labelling.encode), methods=post),
        Route("/api/images/{index:number}/segment", _answer(labelling.segment), methods=post),
        Route("/api/images/{index:number}/masks", _answer(labelling.keep), methods=post),
        Route("/api/images/{index:number}/find", _answer(labelling.find), methods=post),
        Route("/api/masks", _answer(labelling.delete_all), methods=["DELETE"]),
        Route("/api/masks/restore", _answer(labelling.restore_all), methods=post),
        Route("/api/masks/{number:number}", _answer(labelling.delete), methods=["DELETE"]),
        Route("/api/masks/{number:number}/restore", _answer(labelling.restore), methods=post),
        Route("/api/masks/{number:number}/label", _answer(labelling.relabel), methods=post),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={HTTPException: _explain_status},
    )


def _list_page() -> list[str]:
    return sorted(file.name for file in files("vpexp.demo").joinpath("page").iterdir() if file.is_file())


def _serve_page(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("vpexp.demo").joinpath("page", name).read_bytes()

    async def serve(request: Request) -> Response:
        del request
        return Response(content, media_type=MEDIA_TYPES[name.rpartition(".")[2]])

    return serve


def _answer(answerer: Answerer) -> Callable[[Request], Awaitable[Response]]:
    """Wrap what answers: read the body, leave the event loop, turn whatever goes wrong into one line."""

    async def answer(request: Request) -> Response:
        try:
            content = await _read_body(request) if request.method == "POST" else None
            answered = await run_in_threadpool(answerer, request, content)
        except RequestError as error:
            return build_error(error.status, str(error))
        except tuple(STATUS) as error:
            return build_error(STATUS[type(error)], str(error))
        except Exception as error:  # a defect: the page goes on, the log has the whole of it
            log.exception("%s %s", request.method, request.url.path)
            return build_error(500, f"vpexp failed: {type(error).__name__}: {error} (vpexp.log of the run has more)")
        return answered if isinstance(answered, Response) else Reply(answered)

    return answer


async def _read_body(request: Request) -> dict[str, Any]:
    """Read a small JSON object; the media type is one that other sites' pages cannot send without asking."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError(415, "send application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise RequestError(413, f"a request has at most {MOST_BYTES} bytes")
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise RequestError(400, "the request is no readable JSON") from None
    if not isinstance(content, dict):
        raise RequestError(400, "the request is no JSON object")
    return content


async def _explain_status(request: Request, error: Exception) -> Response:
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    return build_error(status, HTTPStatus(status).phrase.lower())


def _read_label(content: dict[str, Any]) -> str:
    return " ".join(_read_text(content, "label").split())


def _read_text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or not value.isprintable():
        raise RequestError(400, f"{name} must be a text of 1 to {LONGEST_NAME} characters")
    return value


def _describe_rle(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
