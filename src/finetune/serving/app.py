"""What the server answers: the page, what is known of the model, and images."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from finetune.data.decoding import ImageReader, open_image
from finetune.data.in_memory import content_of
from finetune.data.transforms import MAX_ASPECT
from finetune.distribution import own_version
from finetune.errors import DataError, FinetuneError, ImageError, NetworkError
from finetune.exporting.onnx_model import OnnxModel
from finetune.extras import missing
from finetune.serving.answerers import Model
from finetune.serving.budget import Budget, Limits
from finetune.serving.corrections import Corrections
from finetune.serving.engine import NAME, Engine, Question
from finetune.serving.guard import Guard, JsonResponse, refusal
from finetune.serving.neighbours import Neighbours
from finetune.serving.uploads import only_one, uploaded

Result = TypeVar("Result")
STATIC = Path(__file__).parent / "static"
LOOK = Path(__file__).parents[1] / "reporting" / "templates" / "report.css"
# By path: the file, and what it is.
PAGE = {
    "/": (STATIC / "index.html", "text/html"),
    "/page.js": (STATIC / "page.js", "text/javascript"),
    "/page.css": (STATIC / "page.css", "text/css"),
    "/report.css": (LOOK, "text/css"),
}
PUBLIC = frozenset({*PAGE, "/healthz"})


@dataclass(frozen=True)
class Service:
    """A model that is served.

    Attributes:
        model: as it was opened: a classifier, an ensemble, or an export.
        engine: that has it answer.
        limits: of requests.
        token: that clients have to know; None: none.
        own_names_only: whether the server is on this machine's own address, where without a
            token it answers to its own names alone.
        corrections: where images with their true label are kept; None: nowhere.
        neighbours: the training images, where they may be shown.
    """

    model: Model
    engine: Engine
    limits: Limits
    token: str | None = None
    own_names_only: bool = True
    corrections: Corrections | None = None
    neighbours: Neighbours | None = None

    @property
    def explains(self) -> bool:
        """Whether there are maps of where the network looked."""
        return not isinstance(self.model, OnnxModel) and not missing("report")

    def described(self) -> dict[str, Any]:
        """What a client may know of the model; no path, and nothing of the images."""
        model, (max_pixels, _) = self.engine.model, self.engine.limits
        views = model.preprocessings
        return {
            "finetune": own_version(),
            "task": model.task.name,
            "class_names": list(model.class_names),
            "image_sizes": sorted({view.image_size for view in views}),
            "unknown": model.knows_unknown,
            "cannot": list(model.cannot),
            "explains": self.explains,
            "compares": self.neighbours is not None,
            "keeps_corrections": self.corrections is not None,
            "limits": {
                "images": self.limits.images,
                "body_bytes": self.limits.body_bytes,
                "pixels": max_pixels,
            },
        }


class Routes:
    """What is done at each address."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.engine = service.engine
        self.held = Budget(service.limits.bytes_in_work)

    async def predict(self, request: Request) -> Response:
        """Answers for one or many images, in their order."""
        async with uploaded(request, self.service.limits, self.held) as contents:
            found = await _answered(self.engine.ask(contents), image_errors=True)
        answers = [
            {"image": number, **({"error": said(each)} if isinstance(each, ImageError) else each)}
            for number, each in enumerate(found)
        ]
        status = 200 if any("error" not in answer for answer in answers) else 422
        return JsonResponse({"answers": answers}, status)

    async def explain(self, request: Request) -> Response:
        """A PNG of the image with heat over it."""
        if not self.service.explains:
            raise HTTPException(404, "Expected a model whose answers can be shown in the image.")
        name = request.query_params.get("class")
        if name is not None and name not in self.engine.model.class_names:
            raise HTTPException(422, "Expected a class of this model.")
        drawn = await self._of_one(request, lambda image: _explained(self.service, image, name))
        return Response(drawn, media_type="image/png")

    async def similar(self, request: Request) -> Response:
        """The training images nearest to one."""
        neighbours = self.service.neighbours
        if neighbours is None:
            raise HTTPException(404, "Expected a server that shows training images; this does not.")
        network = self.engine.network
        found = await self._of_one(request, lambda image: neighbours.nearest(image, network))
        return JsonResponse({"nearest": [each._asdict() for each in found]})

    async def correct(self, request: Request) -> Response:
        """Keep an image with its true label."""
        corrections = self.service.corrections
        if corrections is None:
            raise HTTPException(404, "Expected a server that keeps corrections; this one does not.")
        label = corrections.label(request.query_params.getlist("label"))
        async with uploaded(request, self.service.limits, self.held) as contents:
            content = only_one(contents)
            (answer,) = await _answered(self.engine.ask([content]))
            keep = self.engine.run(lambda image: corrections.keep(image, label, answer), content)
            (kept,) = await _answered([keep])
            return JsonResponse({"kept": kept})

    async def model(self, request: Request) -> Response:
        """What is known of the model."""
        return JsonResponse(self.service.described())

    async def healthz(self, request: Request) -> Response:
        """Whether there is who answers."""
        alive = self.engine.is_alive
        return JsonResponse({"status": "ok" if alive else "failed"}, 200 if alive else 500)

    async def _of_one(self, request: Request, work: Callable[[bytes], Result]) -> Result:
        """What is made of the one image of a request, in a thread."""
        async with uploaded(request, self.service.limits, self.held) as contents:
            (result,) = await _answered([self.engine.run(work, only_one(contents))])
            return result


def application(service: Service) -> Starlette:
    """All routes behind :class:`Guard`."""
    routes = Routes(service)
    posted = (routes.predict, routes.explain, routes.similar, routes.correct)
    guard = Middleware(
        Guard,
        token=service.token,
        # Who has to know the token cannot be led here by another name; a proxy has one.
        own_names_only=service.own_names_only and service.token is None,
        public=PUBLIC,
        seconds=service.limits.answer_seconds,
    )
    return Starlette(
        routes=[
            *(Route(path, _file(*file)) for path, file in PAGE.items()),
            Route("/healthz", routes.healthz),
            Route("/model", routes.model),
            *(Route(f"/{each.__name__}", each, methods=["POST"]) for each in posted),
        ],
        middleware=[guard],
        exception_handlers={
            HTTPException: _refused,
            DataError: _not_possible,
            NetworkError: _not_possible,
        },
    )


def said(error: FinetuneError) -> str:
    """An error's sentence for a client: without our name of its image, and what a library said."""
    return re.sub(r" \(.*\)(?=;)", "", str(error)).replace(f" at {NAME}", "")


@overload
async def _answered(questions: list[Question[Result]]) -> list[Result]: ...
@overload
async def _answered(
    questions: list[Question[Result]], *, image_errors: bool
) -> list[Result | ImageError]: ...
async def _answered(
    questions: list[Question[Result]], *, image_errors: bool = False
) -> list[Result] | list[Result | ImageError]:
    """The answers, in order; dropped where the client has to wait too long.

    Args:
        questions: of one request.
        image_errors: hand over what is wrong with an image instead of raising it.
    """
    waiting = [asyncio.wrap_future(question.answer) for question in questions]
    try:
        found = await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        for question in questions:
            question.drop()
    for each in found:
        if isinstance(each, BaseException) and not (image_errors and isinstance(each, ImageError)):
            raise each
    return cast("list[Result | ImageError]", found)


def _explained(service: Service, content: bytes, class_name: str | None) -> bytes:
    """The image with the heat over it as PNG, as large as the network sees it.

    Where several things are explained, labels or both ways that a number is moved, side by side.

    Raises:
        ImageError: it cannot be read, or is too long to be drawn.
        NetworkError: a network without a feature map.
    """
    from finetune.reporting.explain import explain
    from finetune.reporting.overlays import overlay, panels

    max_pixels, max_decoding_mb = service.engine.limits
    with open_image(content, name=str(NAME), max_pixels=max_pixels) as image:
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ImageError(
                f"Expected an image at most {MAX_ASPECT} times as long as wide, found "
                f"{image.width} x {image.height} pixels; cut it."
            )
    reader = ImageReader.of(
        service.engine.model.preprocessings, max_pixels=max_pixels, max_decoding_mb=max_decoding_mb
    )
    pixels = replace(reader, in_chans=3).decode(content, name=str(NAME))
    small = content_of(pixels, name=str(NAME))
    assert not isinstance(service.model, OnnxModel)  # it explains nothing
    with service.engine.network:
        found = explain(service.model, small, [class_name])
    raw = io.BytesIO()
    drawn = Image.fromarray(overlay(found[0])) if len(found) == 1 else panels([found])
    drawn.save(raw, "PNG")
    return raw.getvalue()


def _file(path: Path, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = path.read_bytes()

    async def respond(request: Request) -> Response:
        return Response(content, media_type=kind)

    return respond


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error)


def _not_possible(request: Request, error: Exception) -> Response:
    assert isinstance(error, FinetuneError)
    return refusal(HTTPException(422, said(error)))
