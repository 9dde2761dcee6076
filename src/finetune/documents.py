"""Reading JSON and YAML that strangers may have written: plain values within bounds, or one line.

Every such file is read here: settings of a run, its figures, its group. A file that is no regular
one, is too long, is no UTF-8, nests too deeply or repeats itself without end is refused before a
parser works on it.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from finetune.errors import UsageError
from finetune.spec.schema import Check, UnexpectedValue

MOST_BYTES = 16 * 2**20
MOST_DEPTH = 64


def read_json(path: str | Path, check: Check) -> Any:
    """The values of a JSON file, as the schema wants them.

    Raises:
        UsageError: no regular file, too long, no UTF-8, no JSON, or other values than expected.
    """
    text = read_document(path)
    try:
        content = json.loads(text)
        check(content)
    except RecursionError:
        raise _refusal(path, "brackets that nest without end") from None
    except UnexpectedValue as error:
        raise _refusal(path, f"another: {error}") from None
    except ValueError as error:
        raise _refusal(path, f"no JSON ({error})") from None
    return content


def read_document(path: str | Path) -> str:
    """The text of a small regular file in UTF-8, whoever wrote it.

    Raises:
        UsageError: anything else; a pipe or a device is not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _refusal(path, "something else, such as a pipe or a folder")
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _refusal(path, f"that it cannot be read ({error.strerror or error})") from None
    if len(content) > MOST_BYTES:
        raise _refusal(path, f"more than {MOST_BYTES // 2**20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _refusal(path, "other bytes than UTF-8") from None
    if "\0" in text:
        raise _refusal(path, "a binary file")
    return text


def _refusal(path: str | Path, found: str) -> UsageError:
    found = " ".join(found.split())
    return UsageError(
        f"Expected a small text file of settings or figures in {path}, found {found}; "
        "take another copy, or mend it."
    )
