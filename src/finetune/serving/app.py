"""What the server answers: the page, what is known of the model, and images."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from finetune.errors import FinetuneError, ImageError, NetworkError
from finetune.extras import missing
from finetune.serving.answers import JsonAnswer
from finetune.serving.budget import Budget, Limits
from finetune.serving.corrections import Corrections
from finetune.serving.engine import NAME, Engine
from finetune.serving.guard import Guard, JsonResponse, refusal
from finetune.serving.uploads import only_one, uploaded
from finetune.tasks.multiclass import MULTICLASS

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble
    from finetune.training.classifier import ImageClassifier

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
        model: as it was opened.
        engine: that has it answer.
        limits: of requests.
        token: that clients have to know; None: none.
        own_names_only: whether the server is on this machine's own address.
        corrections: where images with their true label are kept; None: nowhere.
    """

    model: ImageClassifier | Ensemble
    engine: Engine
    limits: Limits
    token: str | None = None
    own_names_only: bool = True
    corrections: Corrections | None = None

    @property
    def explains(self) -> bool:
        """Whether there are maps of where the network looked."""
        return self.engine.model.task == MULTICLASS and not missing("report")

    def described(self) -> dict[str, Any]:
        """What a client may know of the model; no path, and nothing of the images."""
        model, (max_pixels, _) = self.engine.model, self.engine.limits
        views = model.preprocessings
        return {
            "finetune": own_version(),
            "task": model.task.name,
            "class_names": list(model.class_names),
            "image_sizes": sorted({view.image_size for view in views}),
            "unknown": model.unknown is not None,
            "explains": self.explains,
            "keeps_corrections": self.corrections is not None,
            "limits": {
                "images": self.limits.images,
                "body_bytes": self.limits.body_bytes,
                "pixels": max_pixels,
            },
        }


def application(service: Service) -> Starlette:
    """All routes behind :class:`Guard`."""
    held = Budget(service.limits.bytes_in_work)
    engine, limits = service.engine, service.limits

    async def predict(request: Request) -> Response:
        async with uploaded(request, limits, held) as contents:
            found = await _answers(engine, contents)
        answers = [
            {"image": number, **({"error": said(each)} if isinstance(each, ImageError) else each)}
            for number, each in enumerate(found)
        ]
        status = 200 if any("error" not in answer for answer in answers) else 422
        return JsonResponse({"answers": answers}, status)

    async def explain(request: Request) -> Response:
        if not service.explains:
            raise HTTPException(404, "Expected a model whose answers can be shown in the image.")
        name = request.query_params.get("class")
        if name is not None and name not in engine.model.class_names:
            raise HTTPException(422, "Expected a class of this model.")
        async with uploaded(request, limits, held) as contents:
            content = only_one(contents)
            drawn = engine.run(lambda: _explained(service, content, name))
            return Response(await asyncio.wrap_future(drawn), media_type="image/png")

    async def correct(request: Request) -> Response:
        if service.corrections is None:
            raise HTTPException(404, "Expected a server that keeps corrections; this one does not.")
        keep = service.corrections.keep
        label = service.corrections.label(request.query_params.getlist("label"))
        async with uploaded(request, limits, held) as contents:
            content = only_one(contents)
            (answer,) = await _answers(engine, [content])
            if isinstance(answer, ImageError):
                raise answer
            kept = engine.run(lambda: keep(content, label, answer))
            return JsonResponse({"kept": await asyncio.wrap_future(kept)})

    async def model(request: Request) -> Response:
        return JsonResponse(service.described())

    async def healthz(request: Request) -> Response:
        alive = engine.is_alive
        return JsonResponse({"status": "ok" if alive else "failed"}, 200 if alive else 500)

    return Starlette(
        routes=[
            *(Route(path, _file(*file)) for path, file in PAGE.items()),
            Route("/healthz", healthz),
            Route("/model", model),
            Route("/predict", predict, methods=["POST"]),
            Route("/explain", explain, methods=["POST"]),
            Route("/correct", correct, methods=["POST"]),
        ],
        middleware=[
            Middleware(
                Guard,
                token=service.token,
                own_names_only=service.own_names_only,
                public=PUBLIC,
                seconds=limits.answer_seconds,
            )
        ],
        exception_handlers={
            HTTPException: _refused,
            ImageError: _not_possible,
            NetworkError: _not_possible,
        },
    )


def said(error: FinetuneError) -> str:
    """An error's sentence for a client: without our name of its image, and what a library said."""
    return re.sub(r" \(.*\)(?=;)", "", str(error)).replace(f" at {NAME}", "")


async def _answers(engine: Engine, contents: list[bytes]) -> list[JsonAnswer | ImageError]:
    """One a file, in their order; a question whose client has gone is dropped."""
    questions = engine.ask(contents)
    try:
        waiting = (asyncio.wrap_future(question.answer) for question in questions)
        found = await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        for question in questions:
            question.drop()
    answers: list[JsonAnswer | ImageError] = []
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, ImageError):
            raise each
        answers.append(each)
    return answers


def _explained(service: Service, content: bytes, class_name: str | None) -> bytes:
    """The image with the heat over it as PNG, as large as the network sees it.

    Raises:
        ImageError: it cannot be read, or is too long to be drawn.
        NetworkError: a network without a feature map.
    """
    from finetune.reporting.explain import explain
    from finetune.reporting.overlays import overlay

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
    with service.engine.network:
        (found,) = explain(service.model, small, [class_name])
    raw = io.BytesIO()
    Image.fromarray(overlay(found)).save(raw, "PNG")
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
