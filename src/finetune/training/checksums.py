"""Whether a checkpoint still holds what was written: a checksum of each of its parts.

The sums are CRC-32, which notices every changed bit at half of what reading the file costs. They
guard against disks, networks and copies, not against people: whoever changes a file on purpose can
change its sums too.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.errors import CheckpointError

CHECKSUMS = "checksums"


def signed(content: Mapping[str, Any], entry: str) -> dict[str, Any]:
    """The content of a checkpoint, with the checksums of its parts in one of them, the entry."""
    parts = {**content, entry: _unsigned(content[entry])}
    sums = {name: checksum(part) for name, part in parts.items()}
    return {**parts, entry: {**parts[entry], CHECKSUMS: sums}}


def verify(
    content: Mapping[str, Any],
    entry: str,
    path: str | Path,
    *,
    parts: Collection[str] | None = None,
) -> None:
    """Compare the parts of a checkpoint with the checksums in its entry.

    Files of earlier versions have none and pass.

    Args:
        content: what was read.
        entry: name of the part with the sums.
        path: for the message.
        parts: only these; the others may be mapped from the file and read later.

    Raises:
        CheckpointError: something has changed since the file was written.
    """
    sums = content[entry].get(CHECKSUMS)
    if sums is None:
        return
    sums = sums if isinstance(sums, Mapping) else {}
    found = {**content, entry: _unsigned(content[entry])}
    names = found.keys() | sums if parts is None else set(parts)
    changed = [
        name
        for name in sorted(names)
        if name not in found or checksum(found[name]) != sums.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"Expected the content of {path} as it was written, found {', '.join(changed)} changed "
            "(a faulty disk or copy); take another copy."
        )


def checksum(value: Any) -> str:
    """CRC-32 of tensors and plain values, eight hexadecimal digits."""
    found = 0
    for piece in _pieces(value):
        found = zlib.crc32(piece, found)
    return f"{found:08x}"


def _unsigned(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != CHECKSUMS}


def _pieces(value: Any) -> Iterator[Any]:
    """Buffers that tell any two different values apart; the order of dictionaries counts."""
    match value:
        case Tensor():
            yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
            if value.layout == torch.strided and not value.is_quantized and value.numel():
                flat = value.detach().cpu().contiguous().reshape(-1)
                yield flat.view(torch.uint8).numpy()
        case Mapping():
            yield f"map {len(value)};".encode()
            for key, item in value.items():
                yield from _pieces(key)
                yield from _pieces(item)
        case list() | tuple():
            yield f"list {len(value)};".encode()
            for item in value:
                yield from _pieces(item)
        case bool() | None:
            yield f"{value};".encode()
        case int():
            yield f"int {int(value)};".encode()
        case float():
            yield f"float {float(value).hex()};".encode()
        case str():
            text = value.encode("utf-8", errors="surrogatepass")
            yield f"text {len(text)};".encode() + text
        case _:  # such as a set, whose order is not that of the file
            yield f"{type(value).__name__};".encode()
