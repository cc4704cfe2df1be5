"""The addresses of the labelling page, and what a request is answered with where something goes wrong."""

import logging
from collections.abc import Awaitable, Callable
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
from vpexp.demo.app import LabellingApp
from vpexp.demo.pictures import PictureChangedError
from vpexp.demo.requests import read_body
from vpexp.demo.server import Guard, Reply, RequestError, build_error
from vpexp.demo.session import ModelChangedError
from vpexp.demo.steps import StepError
from vpexp.demo.store import LabelError, UnknownMaskError
from vpexp.errors import OutputError

log = logging.getLogger(__name__)

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

STATUS: dict[type[Exception], int] = {
    StepError: 400,
    UnknownMaskError: 404,
    PictureChangedError: 409,
    ModelChangedError: 409,
    LabelError: 409,
    ImageFileError: 422,
    OutputError: 507,
}
"""What a request meets that its sender, or the user, can mend."""

Answerer = Callable[[Request, Any], Any]


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
    get = ["GET"]
    routes = [
        Route("/", _serve_page("index.html"), methods=get),
        *(Route(f"/page/{name}", _serve_page(name), methods=get) for name in _list_page()),
        *(Route(path, _answer(answerer), methods=[method]) for method, path, answerer in _list_answerers(labelling)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={HTTPException: _explain_status},
    )


def _list_answerers(labelling: LabellingApp) -> list[tuple[str, str, Answerer]]:
    """List what answers which request: method, address and answerer."""
    image, mask = "/api/images/{index:number}", "/api/masks/{number:number}"
    return [
        ("GET", "/api/images", labelling.list_images),
        ("GET", "/api/state", labelling.read_state),
        ("GET", "/api/order", labelling.read_order),
        ("GET", image, labelling.read_image),
        ("GET", f"{image}/picture", labelling.send_picture),
        ("POST", f"{image}/encode", labelling.encode),
        ("POST", f"{image}/segment", labelling.segment),
        ("POST", f"{image}/masks", labelling.keep),
        ("GET", f"{image}/proposals", labelling.propose),
        ("POST", f"{image}/accept", labelling.accept),
        ("POST", f"{image}/reject", labelling.reject),
        ("POST", f"{image}/done", labelling.set_done),
        ("DELETE", "/api/masks", labelling.delete_all),
        ("POST", "/api/masks/restore", labelling.restore_all),
        ("DELETE", mask, labelling.delete),
        ("POST", f"{mask}/restore", labelling.restore),
        ("POST", f"{mask}/label", labelling.relabel),
        ("POST", f"{mask}/pixels", labelling.reshape),
        ("POST", f"{mask}/split", labelling.split),
        ("POST", "/api/labels", labelling.add_label),
        ("POST", "/api/labels/rename", labelling.rename_label),
        ("POST", "/api/labels/delete", labelling.drop_label),
        ("POST", "/api/learning/{action}", labelling.steer_learning),
    ]


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
            content = await read_body(request) if request.method == "POST" else None
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


async def _explain_status(request: Request, error: Exception) -> Response:
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    return build_error(status, HTTPStatus(status).phrase.lower())
