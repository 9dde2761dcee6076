"""Which of Lightning's own options a fit by phases takes; the others are refused before it begins.

Three looks: each option alone, by one table; all together, by a trainer that is built and never
runs; and the amounts of batches, once the images are counted.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from finetune.errors import FinetuneError, UsageError
from finetune.processes import own_place
from finetune.spec.schema import Check, UnexpectedValue, either, number, optional, whole
from finetune.spec.settings import check_settings

_BATCHES = either(whole(1), number(0, 1))  # so many of them, or a share


def _unless(wanted: object, instead: str) -> Check:
    """No other value than the default, for a reason."""

    def check(value: Any) -> None:
        if value is not None and value != wanted:
            raise UnexpectedValue(f"left out, since {instead}", value)

    return check


def _some_time(value: Any) -> None:
    """A time above 0, where Lightning can read it; what it cannot, building a trainer tells."""
    from lightning.pytorch.callbacks import Timer

    try:
        remaining = Timer(duration=value).time_remaining()
    except Exception:
        return
    if remaining == 0:
        raise UnexpectedValue("a time above 0", value)


def _some_batches(value: Any) -> None:
    _BATCHES(value)
    if value == 0:
        raise UnexpectedValue("a number of batches from 1, or a share of them above 0", value)


EVERY_VERB: Mapping[str, Check] = {
    "barebones": _unless(False, "figures and checkpoints would be missing"),
    "fast_dev_run": _unless(
        False, "it judges and keeps nothing (limit_train_batches 2 and max_epochs 1 are as quick)"
    ),
}
FIT: Mapping[str, Check] = {
    **EVERY_VERB,
    "enable_checkpointing": _unless(True, "the best epoch is what a fit delivers"),
    "overfit_batches": _unless(
        0, "training images would count as held out (limit_train_batches takes few of them)"
    ),
    "max_steps": _unless(-1, "each phase ends with an epoch (give max_epochs)"),
    "max_epochs": optional(whole(1)),
    "limit_train_batches": optional(_some_batches),
    "limit_val_batches": optional(_some_batches),
    "val_check_interval": optional(_some_batches),
    "check_val_every_n_epoch": whole(1),
    "accumulate_grad_batches": whole(1),
    "gradient_clip_val": optional(number(0)),
    "max_time": optional(_some_time),
    "log_every_n_steps": optional(whole(0)),
}


def check_no_null(settings: Mapping[str, Any], owner: type, *, option: str) -> None:
    """Refuse null for what has a value of its own; jsonargparse takes it whatever the type.

    Args:
        settings: of a class, by name.
        owner: the class.
        option: what stands before a name on the command line.

    Raises:
        UsageError: it names the option and what it would be.
    """
    for name, parameter in signature(owner).parameters.items():
        without = parameter.default
        if without not in (None, parameter.empty) and settings.get(name, without) is None:
            raise UsageError(
                f"Expected {option}{name} to have a value, such as {without} as it has where it is "
                "not given, found null; leave it out."
            )


def check_each(settings: Mapping[str, Any], *, fits: bool) -> None:
    """Refuse the first of the trainer's settings that a verb cannot do anything with.

    Raises:
        UsageError: it names the option and what it may be.
    """
    check_settings(settings, FIT if fits else EVERY_VERB, option="--trainer.")


def check_strategy(strategy: Any, num_nodes: int) -> None:
    """Refuse what starts processes in the middle of a verb: they are started once, before it.

    Raises:
        UsageError: it names what does the same.
    """
    if num_nodes > 1 and not own_place().launched:
        raise UsageError(
            f"Expected processes that a launcher has started on {num_nodes} machines, found one "
            "alone; start the command on each by torchrun or srun."
        )
    if isinstance(strategy, str) and strategy.endswith(("_spawn", "_fork", "_notebook")):
        raise UsageError(
            f"Expected a --trainer.strategy that starts no processes, found {strategy}; they are "
            "started once, before data is opened: give ddp, or leave it out."
        )


def check_together(build: Callable[[], Any]) -> None:
    """Build a trainer, and take Lightning's refusal of devices, plugins, ... for ours.

    Raises:
        UsageError: in Lightning's words.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build()
    except FinetuneError:
        raise
    except Exception as error:  # Lightning has no one class for them
        words = " ".join(str(error).split()).rstrip(".!")
        raise UsageError(
            f"Expected settings of --trainer that this machine can go by, found: {words}."
        ) from error


def check_callbacks(callbacks: Sequence[Any], figures: Sequence[str]) -> None:
    """Refuse a callback that waits for a figure that nothing logs.

    Raises:
        UsageError: the nearest figure is named.
    """
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in figures:
            alike = {name.replace("/", "_"): name for name in figures}
            near = difflib.get_close_matches(str(monitor), alike, n=1, cutoff=0.5)
            hint = f"; did you mean {alike[near[0]]}?" if near else "."
            raise UsageError(
                f"Expected the monitor of {type(callback).__name__} to be one of "
                f"{', '.join(figures)}, found {monitor!r}{hint}"
            )


def check_amounts(settings: Mapping[str, Any], *, train: int, val: int) -> None:
    """Refuse limits of which nothing is left, or that validate never.

    Args:
        settings: the trainer's.
        train, val: batches an epoch; ``val`` 0 where nothing is held out.

    Raises:
        UsageError: it names the option and the batches that there are.
    """
    for name, batches in (("limit_train_batches", train), ("limit_val_batches", val)):
        share = settings.get(name)
        if isinstance(share, float) and batches and share * batches < 1:
            raise UsageError(
                f"Expected --trainer.{name} to leave a batch of the {batches}, found {share}; "
                f"give {1 / batches:.2g} or more, or a whole number of batches."
            )
    limit = settings.get("limit_train_batches")
    limited = train if limit is None else min(train, limit) if isinstance(limit, int) else None
    steps = int(train * limit) if limited is None and limit is not None else limited
    every = settings.get("val_check_interval")
    if every is None or steps is None or not val:
        return
    if every > steps if isinstance(every, int) else steps * every < 1:
        raise UsageError(
            f"Expected --trainer.val_check_interval to come up within the {steps} batches of an "
            f"epoch, found {every}; leave it out to validate at the end of each."
        )
