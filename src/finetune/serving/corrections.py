"""Images whose answer was wrong, with what people say they are: a folder that a fit can learn from.

``images/`` holds each image once, by its content, as it was sent; ``corrections.csv`` is a manifest
of them. The last word on an image counts.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from starlette.exceptions import HTTPException

from finetune.csv_table import csv_text, read_csv_table
from finetune.data.decoding import open_image
from finetune.errors import ManifestError, OutputError
from finetune.files import write_bytes, write_text
from finetune.serving.answers import JsonAnswer
from finetune.serving.budget import MEBIBYTE
from finetune.spec.images import content_id
from finetune.spec.labels import Label, cell
from finetune.spec.numbers import number
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.task import Task

COLUMNS = ("path", "label", "hash", "prediction", "confidence")
MOST_BYTES = 2048 * MEBIBYTE  # of all images in the folder
ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "PPM": "ppm"}


class Corrections:
    """A folder of corrected images, which goes on where it was left.

    Args:
        folder: made where there is none.
        class_names: what an image may be.
        task: whether one class, several labels or a number.

    Raises:
        ManifestError: a ``corrections.csv`` there that is none.
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], task: Task) -> None:
        self.table = folder / "corrections.csv"
        self.images = folder / "images"
        self.class_names = tuple(class_names)
        self.task = task
        self._lock = threading.Lock()
        self._read()
        try:
            self.images.mkdir(parents=True, exist_ok=True)
            self._bytes = sum(image.stat().st_size for image in self.images.iterdir())
        except OSError as error:
            raise OutputError(
                f"Expected a folder for corrections at {folder}, found none that can be made "
                f"({error.strerror}); name another."
            ) from error

    def label(self, names: Sequence[str]) -> Label:
        """What a client says of an image: one class, any number of labels, or a number.

        Raises:
            HTTPException: 422: names that the model does not have, not one class, or no number.
        """
        if not self.task.has_choices:
            try:
                (text,) = names
                return number(text)
            except ValueError:
                raise HTTPException(422, "Expected one number, such as 31.5.") from None
        one_class = self.task == MULTICLASS
        if not set(names) <= set(self.class_names) or (one_class and len(names) != 1):
            wanted = "one label" if one_class else "labels"
            raise HTTPException(422, f"Expected {wanted} out of the model's classes.")
        if one_class:
            return self.class_names.index(names[0])
        return tuple(int(name in names) for name in self.class_names)

    def keep(self, content: bytes, label: Label, answer: JsonAnswer) -> int:
        """Add an image that can be read, or correct its label; the manifest is always whole.

        Returns:
            How many images there are.

        Raises:
            HTTPException: 507: the folder is full, or cannot be written.
        """
        identity = content_id(content)
        with open_image(content, name="image") as image:
            form = image.format or ""
        place = self.images / f"{identity}.{ENDINGS.get(form, form.lower())}"
        prediction = answer["prediction"]
        row = {
            "path": f"images/{place.name}",
            "label": cell(label, self.class_names),
            "hash": identity,
            "prediction": "|".join(prediction) if isinstance(prediction, list) else str(prediction),
            "confidence": f"{answer['confidence']:.9g}" if "confidence" in answer else "",
        }
        with self._lock:
            try:
                columns, rows = self._read()  # its owner may have changed it
                rows[row["path"]] = rows.get(row["path"], {}) | row
                if not place.exists():
                    if self._bytes + len(content) > MOST_BYTES:
                        raise HTTPException(507, "The folder for corrections is full.")
                    write_bytes(place, content)
                    self._bytes += len(content)
                cells = ([row.get(name) for name in columns] for row in rows.values())
                write_text(self.table, csv_text(columns, cells))
            except (ManifestError, OutputError) as error:
                print(f"finetune: a correction was not kept: {error}", file=sys.stderr)
                raise HTTPException(507, "The correction could not be written.") from error
            return len(rows)

    def _read(self) -> tuple[list[str], dict[str, dict[str, str]]]:
        """The columns, also those of others, and the rows by their path."""
        if not self.table.exists():
            return [*COLUMNS], {}
        found = read_csv_table(
            self.table, known=COLUMNS, required=("path", "label"), error=ManifestError
        )
        columns = [*dict.fromkeys((*COLUMNS, *found.columns))]
        return columns, {row["path"]: row for _, row in found.rows}
