"""Everything that can go wrong, as one tree::

    FinetuneError
    ├── UsageError                 a call that cannot mean anything; exit code 2
    ├── DataError
    │   ├── ImageFolderError       the folder as a whole: missing, empty, one class only
    │   ├── ManifestError          a CSV manifest with a missing column, an unknown label, ...
    │   └── ImageError             one file that is not the image it claims to be
    ├── NetworkError
    │   ├── UnknownBackboneError   a name that neither timm nor the baselines know
    │   └── PretrainedWeightsError weights that cannot be had, or do not fit
    ├── TrainingError              a fit that cannot go on: loss not finite, nothing trainable, ...
    ├── CheckpointError            a file that is no checkpoint of ours
    │   └── CheckpointMismatchError  checkpoints that cannot be combined
    ├── CalibrationError           held-out data that cannot calibrate
    ├── MissingPackageError        what an extra of the installation brings is not there
    ├── ExportError                what a format cannot hold, or a file that answers otherwise
    └── OutputError                a file that cannot be written: a full disk, one that exists, ...

Each message says what was expected, what was found, and what to do about it, in one line.
"""


class FinetuneError(Exception):
    """Base of all errors that a user can mend; the command line prints them in one line.

    Examples:
        >>> try:
        ...     finetune.load("runs/cars-1")
        ... except finetune.FinetuneError as error:
        ...     print(type(error).__name__)
        CheckpointError
    """


class UsageError(FinetuneError):
    """The call itself is wrong: unknown option, contradicting settings."""


class DataError(FinetuneError):
    """Something about the user's images or labels."""


class ImageFolderError(DataError):
    """The folder as a whole cannot be used."""


class ManifestError(DataError):
    """A CSV manifest that does not say what is needed."""


class ImageError(DataError):
    """One file that cannot be read as an image."""


class NetworkError(FinetuneError):
    """Something about a backbone or a baseline."""


class UnknownBackboneError(NetworkError):
    """No network has this name."""


class PretrainedWeightsError(NetworkError):
    """Pretrained weights cannot be had, or do not fit the network."""


class TrainingError(FinetuneError):
    """A fit that cannot go on."""


class CheckpointError(FinetuneError):
    """A file that is not a checkpoint of this project."""


class CheckpointMismatchError(CheckpointError):
    """Checkpoints that do not belong together."""


class CalibrationError(FinetuneError):
    """Held-out data that cannot calibrate a classifier."""


class MissingPackageError(FinetuneError):
    """A package that only an extra of the installation brings."""


class ExportError(FinetuneError):
    """A classifier that a format cannot hold, or a file that would answer otherwise."""


class OutputError(FinetuneError, OSError):
    """A file that cannot be written; also an ``OSError``, since caches go on without it."""
