"""Where things are kept that can be computed again: never in the user's folder of pictures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The given folder, or ``finetune`` in the platform's cache folder; not created here."""
    return user_cache_path("finetune") if cache_dir is None else Path(cache_dir)


def short_hash(text: str) -> str:
    """16 hexadecimal digits that name a file after a text."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()
