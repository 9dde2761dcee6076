"""Files of images from a request's body: one as it is, or several as multipart; held in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from finetune.serving.budget import MEBIBYTE, Budget, Limits


@asynccontextmanager
async def uploaded(request: Request, limits: Limits, held: Budget) -> AsyncIterator[list[bytes]]:
    """What the files of a request hold, counted as long as the block runs.

    Raises:
        Busy: too many bytes are held at the moment.
        HTTPException: 408, 413 or 422: the body is too slow, too large, or holds no image.
    """
    length = _declared(request, limits)
    held.take(length)
    try:
        try:
            async with asyncio.timeout(limits.reading_seconds):
                contents = await _contents(request, limits)
        except TimeoutError as error:
            seconds = f"{limits.reading_seconds:.0f} seconds"
            raise HTTPException(408, f"Expected a whole body in {seconds}.") from error
        yield contents
    finally:
        held.give_back(length)


def only_one(contents: list[bytes]) -> bytes:
    """The one file.

    Raises:
        HTTPException: 422: there are others.
    """
    if len(contents) != 1:
        raise HTTPException(422, f"Expected one image, found {len(contents)}.")
    return contents[0]


def _declared(request: Request, limits: Limits) -> int:
    """How many bytes will come, or the most that may where nobody says."""
    length = request.headers.get("content-length", "")
    declared = int(length) if length.isdecimal() else limits.body_bytes
    if declared > limits.body_bytes:
        raise _too_large(limits)
    return declared


async def _contents(request: Request, limits: Limits) -> list[bytes]:
    stream = _bounded(request, limits)
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return [b"".join([chunk async for chunk in stream])]
    parser = MultiPartParser(request.headers, stream, max_files=limits.images, max_fields=0)
    parser.spool_max_size = limits.body_bytes + 1  # never into a file
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise HTTPException(
            413 if "Too many files" in str(error) else 422,
            f"Expected at most {limits.images} images, each as a part with a filename, and nothing "
            "else in a multipart body.",
        ) from error
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    try:
        contents = [file.file.read() for file in files]
    finally:
        await form.close()
    if not contents:
        raise HTTPException(422, "Expected an image, found none in the body.")
    return contents


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.body_bytes:
            raise _too_large(limits)
        yield chunk


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(
        413, f"Expected at most {limits.body_bytes // MEBIBYTE} MiB in one request; send less."
    )
