"""Images as points: what enters a network's final layer, by content, in a space that has a name.

Distances are cosines' complements. Points of two networks have nothing to do with each other, so
each table carries the key of its network and of how that sees images, and no two are mixed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.cache_dir import file_stamp
from finetune.combining.ensemble import Ensemble
from finetune.data.dataset import ImageDataset
from finetune.data.decoding import MAX_PIXELS, ImageReader
from finetune.data.image_bytes import image_id
from finetune.data.transforms import evaluation_transform
from finetune.data.workers import choose_num_workers
from finetune.errors import CheckpointMismatchError, DataError, UsageError
from finetune.extras import need
from finetune.files import atomic_write
from finetune.prediction.inputs import FileOrFolder, find_images
from finetune.spec.images import LabelledImage
from finetune.tables.writing import encodable
from finetune.training.classifier import ImageClassifier
from finetune.training.features.extract import frozen_features, space_key
from finetune.training.features.store import FeatureStore

ENDINGS = (".parquet", ".npz")


class Neighbour(NamedTuple):
    """An image, and its distance, from 0 to 2."""

    path: str
    distance: float


@dataclass(frozen=True, slots=True)
class Features:
    """What a network makes of N images.

    Attributes:
        network: the key of network, weights and preprocessing: equal keys, one space.
        paths: one an image, as given.
        ids: of the images' whole content.
        values: what enters the final layer, float32 ``(N, D)``.

    Examples:
        >>> pets = finetune.embed("runs/pets-1", "pets", quiet=True)
        >>> one = finetune.embed("runs/pets-1", "pets/cat/00.png", quiet=True)
        >>> nearest = one.nearest(pets, number=3)[0]
        >>> nearest.path.endswith("00.png"), round(nearest.distance, 3)
        (True, 0.0)
    """

    network: str
    paths: tuple[str, ...]
    ids: tuple[str, ...]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.paths)

    def distances(self, others: Features) -> NDArray[np.float64]:
        """Of these N to M others, ``(N, M)``, one minus the cosine, from 0 to 2.

        Raises:
            CheckpointMismatchError: the others are of another space.
        """
        if others.network != self.network:
            raise CheckpointMismatchError(
                f"Expected features of the network {self.network}, found those of "
                f"{others.network}; embed both with one checkpoint."
            )
        own, theirs = (_of_length_one(each.values) for each in (self, others))
        return np.clip(1 - own @ theirs.T, 0, 2)

    def nearest(self, others: Features, number: int = 10) -> list[Neighbour]:
        """Which of the others lie nearest to the only image of these, the nearest first.

        Raises:
            CheckpointMismatchError: the others are of another space.
            UsageError: not one image.
        """
        if len(self) != 1:
            raise UsageError(f"Expected one image to compare, found {len(self)}; name one file.")
        distances = self.distances(others)[0]
        order = np.argsort(distances, kind="stable")[:number]
        return [Neighbour(others.paths[row], float(distances[row])) for row in order]

    def save(self, path: str | Path) -> None:
        """Write path, id and features of each image and the network's key; whole or not at all.

        Raises:
            UsageError: an ending that is neither .npz nor .parquet.
        """
        needed_for(Path(path))
        with atomic_write(path) as beside:
            self.write(beside, ending=Path(path).suffix)

    def write(self, beside: Path, *, ending: str) -> None:
        """Into a file that takes its place later; the ending names the format."""
        if ending.lower() == ".parquet":
            _write_parquet(self, beside)
            return
        with beside.open("wb") as file:
            np.savez(
                file,
                network=np.array(self.network),
                paths=np.array(self.paths),
                ids=np.array(self.ids),
                features=self.values,
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Features:
        """Read what :meth:`save` wrote; nothing in it is run.

        Raises:
            DataError: no such table.
        """
        try:
            needed_for(Path(path))
            if Path(path).suffix.lower() == ".parquet":
                return _checked(*_read_parquet(Path(path)))
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as kept:
                network, paths, ids = (kept[name].tolist() for name in ("network", "paths", "ids"))
                return _checked(network, paths, ids, kept["features"])
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"Expected features that `finetune embed` wrote in {path}, found none "
                f"({' '.join(str(error).split())[:200]}); embed the images again."
            ) from error


def features_of(
    model: ImageClassifier | Ensemble,
    images: FileOrFolder | Iterable[FileOrFolder],
    *,
    max_pixels: int = MAX_PIXELS,
    store: FeatureStore | None = None,
) -> Features:
    """What a classifier, or the first one of an ensemble, makes of files, folders and patterns.

    Args:
        model: where it is, it runs.
        images: as for :func:`finetune.predict`.
        max_pixels: most pixels of an image.
        store: where features are looked up, and kept.

    Raises:
        DataError: no image. ImageError: one that cannot be read.
        UsageError: an ensemble without a classifier.
        NetworkError: a network whose final layer takes no features.
    """
    classifier = Ensemble.of(model).first_classifier
    if classifier is None:
        raise UsageError(
            "Expected a classifier, or an ensemble with one, found saved predictions alone; give "
            "the checkpoint that made them."
        )
    files = find_images(images)
    preprocessing = classifier.preprocessing
    reader = ImageReader.of([preprocessing], max_pixels=max_pixels)
    known = [LabelledImage(path, -1, id=image_id(path), stamp=file_stamp(path)) for path in files]
    dataset = ImageDataset(known, evaluation_transform(preprocessing), reader)
    found = frozen_features(classifier, dataset, store=store, num_workers=choose_num_workers(files))
    return Features(
        space_key(classifier, "head", None),
        tuple(map(str, files)),
        tuple(image.id for image in known),
        found.tensor().flatten(1).numpy(),
    )


def needed_for(path: Path) -> None:
    """Refuse a file of features that cannot be written or read here, before any work.

    Raises:
        UsageError: another ending. MissingPackageError: what reads and writes Parquet.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"Expected features in a file that ends in {' or '.join(ENDINGS)}, found "
            f"{path.name!r}; rename it."
        )
    if path.suffix.lower() == ".parquet":
        need("parquet", path.name)


def _checked(
    network: str, paths: Sequence[str], ids: Sequence[str], values: NDArray[np.float32]
) -> Features:
    names = [network, *paths, *ids]
    if not all(isinstance(name, str) for name in names) or values.dtype != np.float32:
        raise ValueError("expected text and float32 numbers")
    if values.ndim != 2 or not len(values) == len(paths) == len(ids):
        raise ValueError(f"expected a row for each of {len(paths)} images, found {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("expected finite numbers")
    return Features(network, tuple(paths), tuple(ids), values)


def _write_parquet(features: Features, beside: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    flat = pyarrow.array(features.values.ravel())
    width = features.values.shape[1]
    columns = {
        "path": pyarrow.array([encodable(path) for path in features.paths]),
        "id": pyarrow.array(features.ids),
        "features": pyarrow.FixedSizeListArray.from_arrays(flat, width),
    }
    table = pyarrow.table(columns).replace_schema_metadata({"network": features.network})
    pyarrow.parquet.write_table(table, beside)


def _read_parquet(path: Path) -> tuple[str, list[str], list[str], NDArray[np.float32]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        column = table["features"].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False)
        values = values.reshape(len(table), column.type.list_size).copy()  # Arrow's is read-only
        network = (table.schema.metadata or {})[b"network"].decode()
    except (pyarrow.ArrowException, AttributeError) as error:
        raise ValueError(str(error)) from error
    return network, table["path"].to_pylist(), table["id"].to_pylist(), values


def _of_length_one(values: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
