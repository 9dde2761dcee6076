"""``finetune.fit``, ``test`` and ``validate``: the commands as functions of Python."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.commands.guest import Where, as_guest
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.prediction.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, of :func:`finetune.fit` or of the command.

    Attributes:
        folder: absolute.

    Examples:
        >>> run = finetune.Run("runs/pets-1")
        >>> run.best.name, "nll" in run.metrics["val"]
        ('best.ckpt', True)
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(os.path.abspath(self.folder)))

    @property
    def best(self) -> Path:
        """The best checkpoint, which needs nothing else."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures so far by stage, as ``metrics.json`` has them: ``metrics["val"]["nll"]``."""
        from finetune.training.metrics_file import read_metrics

        return read_metrics(self.folder)

    def predictor(self) -> Predictor:
        """The best classifier, ready to answer; see :func:`finetune.load`."""
        from finetune.prediction.predictor import load

        return load(self.best)

    def test(
        self, data: Where | None = None, *, quiet: bool = False, **options: Any
    ) -> dict[str, float | str]:
        """Judge the best checkpoint on the test images; see :func:`finetune.test`."""
        return test(self.folder, data, quiet=quiet, **options)


def fit(data: Where | None = None, *, quiet: bool = False, **options: Any) -> Run:
    """Fine-tune a classifier on a folder of images, as ``finetune fit`` does.

    All settings of the command are there by their last name, and chosen for the data where they are
    not given: ``backbone="resnet18", strategy="head", max_epochs=3, val_fraction=0.2, seed=1,
    name="x", runs="runs"``. :mod:`finetune.commands.python_options` says which names
    are which options.
    The process stays as it was, its random states included; a second thread waits for the first.

    Args:
        data: the folder, with one folder of images a class; not needed beside ``resume="RUN"`` or
            ``update="RUN"``.
        quiet: print nothing.
        options: settings. ``devices`` is 1: Lightning would run the caller's whole script again for
            every further one.

    Raises:
        UsageError: a setting that is not there, or is out of its range.
        FinetuneError: images, a network or weights that cannot be used.
    """
    from finetune.commands.python_options import as_arguments

    started = time.monotonic()
    _refuse_many(options)
    if not {"resume", "config", "update"} & set(options):
        options = {**options, "devices": _one_device(options)}
    arguments = [*_root(data), *as_arguments("fit", options)]
    with as_guest(quiet=quiet):
        from finetune.commands.fit import fit_one

        return Run(fit_one(arguments, started=started))


def test(  # no test of pytest's
    checkpoint: Where,
    data: Where | None = None,  # noqa: PT028
    *,
    quiet: bool = False,  # noqa: PT028
    **options: Any,
) -> dict[str, float | str]:
    """Judge a checkpoint on the test images, and write its report, as ``finetune test`` does.

    Args:
        checkpoint: a run folder, or the file of a classifier, an average or an ensemble.
        data: the folder of images; where it is not given, the one that the run was fitted on.
        quiet: print nothing.
        options: of ``finetune test`` by their last name, such as ``batch_size=64``.

    Returns:
        The figures, as ``metrics.json`` keeps them: ``accuracy``, ``balanced_accuracy``, ``nll``,
        ``calibration_error``, ...

    Raises:
        FinetuneError: no checkpoint, no such images, or images that must not be judged.
    """
    return _judge("test", checkpoint, data, options, quiet=quiet)


def validate(
    checkpoint: Where, data: Where | None = None, *, quiet: bool = False, **options: Any
) -> dict[str, float | str]:
    """Judge a checkpoint on the validation images; see :func:`finetune.test`."""
    return _judge("validate", checkpoint, data, options, quiet=quiet)


def _judge(
    verb: Literal["validate", "test"],
    checkpoint: Where,
    data: Where | None,
    options: Mapping[str, Any],
    *,
    quiet: bool,
) -> dict[str, float | str]:
    from finetune.commands.python_options import as_arguments

    with as_guest(quiet=quiet):
        from finetune.combining.ensemble_file import checkpoint_file
        from finetune.commands.evaluate import judge

        file = checkpoint_file(Path(checkpoint))
        root = _root(_fitted_root(Path(checkpoint)) if data is None else data)
        given = [f"--ckpt_path={file}", *root, *as_arguments(verb, options)]
        return judge(verb, given)


def _root(data: Where | None) -> list[str]:
    """Absolute, so that the run's configuration is right from anywhere."""
    return [] if data is None else [f"--data.root={os.path.abspath(data)}"]


def _fitted_root(run: Path) -> str:
    """The images of a run, as its configuration has them."""

    from finetune.commands.config_files import read_settings

    config = run / "config.yaml"
    root = read_settings(str(config)).get("data", {}).get("root") if config.is_file() else None
    if root is None:
        raise UsageError(f"Expected a folder of images beside {run}, found none; give data=DIR.")
    return str(root)


def _refuse_many(options: Mapping[str, Any]) -> None:
    for name, each in (("seeds", "seed=0"), ("folds", "fold=0")):
        if name in options and not (name == "folds" and options.get("fold") is not None):
            raise UsageError(
                f"Expected one fit, found {name}={options[name]}; call fit once for each member, "
                f"with {each} and so on."
            )


def _one_device(options: Mapping[str, Any]) -> Any:
    devices = options.get("devices", "auto")
    if devices in ("auto", None):
        return 1
    if devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1):
        return devices
    raise UsageError(
        f"Expected one device, found devices={devices!r}, each of which would run the whole script "
        "again; run `finetune fit`."
    )
