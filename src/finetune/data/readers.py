"""The readers of one folder's images: what is decoded alike is decoded once, and cached."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.cache import CacheMode, caching_reader
from finetune.data.dataset import Reader
from finetune.data.decoding import ImageReader
from finetune.data.found_images import FoundImages
from finetune.data.workers import reading_seconds
from finetune.spec.preprocessing import Preprocessing


class Readers:
    """One reader for all loaders that decode alike, so that they share what is cached.

    Args:
        found_images: of the folder.
        cache: off, memory, disk, or auto.
        cache_dir: instead of the platform's cache folder.
    """

    def __init__(self, found_images: FoundImages, cache: CacheMode, cache_dir: str | None) -> None:
        self.found_images = found_images
        self.cache: CacheMode = cache
        self.cache_dir = cache_dir
        self._known: dict[ImageReader, Reader] = {}

    def of(self, preprocessings: Sequence[Preprocessing]) -> Reader:
        """Reads an image as large and as colourful as the most demanding of these wants it."""
        wanted = preprocessings or [Preprocessing()]
        reader = ImageReader.of(
            wanted,
            max_pixels=self.found_images.max_pixels,
            max_decoding_mb=self.found_images.max_decoding_mb,
        )
        if reader not in self._known:
            paths = self.found_images.paths
            self._known[reader] = caching_reader(
                reader,
                self.found_images.root,
                mode=self.cache,
                images=len(paths),
                decode_seconds=reading_seconds(paths),
                cache_dir=self.cache_dir,
            )
        return self._known[reader]
