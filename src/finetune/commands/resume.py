"""Going on with an earlier fit: its own settings, in its own folder, from what lies there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.parsing import take
from finetune.errors import UsageError
from finetune.files import write_bytes

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from finetune.training.checkpoints import Checkpoint

# What may differ in a resumed fit: where its images lie (the split is the fit's own), how they are
# read. Of the trainer's settings and those of the run all take effect that are not named below.
FREE = {
    "data.root",
    "data.manifest",
    "data.more",
    "data.num_workers",
    "data.cache",
    "data.cache_dir",
    "data.on_device",
}
# What has been decided once the run folder is there.
DECIDED = ("--name", "--runs", "--ckpt_path", "--model.pretrained", "--data.manifest")


@dataclass(frozen=True, slots=True)
class Resumed:
    """What ``--resume RUN`` means.

    Attributes:
        run: the folder.
        arguments: the run's own settings and last checkpoint, then the options beside.
        beside: the options given beside ``--resume``.
    """

    run: Path
    arguments: list[str]
    beside: list[str]

    @property
    def is_finished(self) -> bool:
        """Whether the fit came to its end, so that there is nothing to resume."""
        from finetune.training.metrics_file import read_metrics

        finished = read_metrics(self.run).get("fit", {}).get("finished")
        return bool(finished) and (self.run / "checkpoints" / "best.ckpt").is_file()


def resumed_run(arguments: Sequence[str]) -> Resumed | None:
    """The run that ``--resume`` names; None without it.

    A run that was killed before its first checkpoint begins anew.

    Raises:
        UsageError: the folder is no run that can be resumed, or an option beside cannot have
            an effect.
    """
    rest, value = take(arguments, "--resume")
    if value is None:
        return None
    run = Path(value)
    if not value or not (run / "config.yaml").is_file():
        raise UsageError(
            f"Expected a run folder with config.yaml after --resume, found "
            f"{value or 'nothing'}; give runs/NAME-N."
        )
    if os.path.realpath(run) != os.path.abspath(run):  # a link, which the fit may move
        run = run.resolve()
    refuse_what_is_decided(rest, run)
    last = run / "checkpoints" / "last.ckpt"
    settings = ["--config", str(run / "config.yaml")]
    settings += ["--ckpt_path", str(last)] if last.is_file() else []
    return Resumed(run, [*settings, *rest], rest)


def refuse_what_is_decided(options: Sequence[str], run: Path, *, members: bool = False) -> None:
    """Refuse options beside ``--resume`` that come too late.

    Args:
        options: all of them.
        run: the folder that is there.
        members: whether it is a group, whose members differ in nothing else than they began with.

    Raises:
        UsageError: one comes too late.
    """
    for option in options:
        name = option.partition("=")[0]
        setting = name.removeprefix("--")
        differs = setting.startswith(("model.", "data.", "monitor", "seed")) and setting not in FREE
        if name in DECIDED or (members and differs):
            raise UsageError(
                f"Expected no {name} beside --resume, for {run} was begun without; "
                f"leave it out, or {new_fit_from(run / 'checkpoints' / 'best.ckpt')}."
            )


def say_finished(resumed: Resumed) -> None:
    """Say that there is nothing to resume, and change nothing.

    Raises:
        UsageError: options that could have an effect in a new fit alone.
    """
    best = resumed.run / "checkpoints" / "best.ckpt"
    if resumed.beside:
        raise UsageError(
            f"Expected a fit to resume, found {resumed.run} finished, where "
            f"{' '.join(resumed.beside)} can have no effect; leave it out, or {new_fit_from(best)}."
        )
    from finetune.commands.recording import say_what_lies_where

    print(f"{resumed.run} is finished: nothing is left to do")
    say_what_lies_where(resumed.run)


def new_fit_from(checkpoint: Path) -> str:
    """How to begin anew where going on is not what is wanted."""
    return f"start a new fit from the weights with --model.pretrained {checkpoint}"


def keep_settings(config: Namespace, checkpoint: Checkpoint) -> None:
    """Give a fit that is resumed from a checkpoint the settings that it was given, and no others.

    The optimizer's and the schedule's state come out of the checkpoint, so another learning rate
    would change the records and nothing else.

    Args:
        config: of the fit, from options and files; is changed.
        checkpoint: that it goes on from.

    Raises:
        UsageError: an option that cannot have an effect any more.
    """
    for name, fitted in _settings_of(checkpoint).items():
        if name in FREE or name not in config:
            continue
        given: Any = config[name]
        if name == "model.image_size" and given == checkpoint.preprocessing.image_size:
            given = None  # the backbone's own, found when the fit began
        if given in (None, "auto") or _same(given, fitted):
            config[name] = fitted
            continue
        option = "seed_everything" if name == "data.training_seed" else name
        raise UsageError(
            f"Expected the settings that {checkpoint.path} was fitted with, {option} {fitted}, "
            f"found {given}, which can have no effect now; leave it out, or "
            f"{new_fit_from(checkpoint.path)}."
        )
    config.model.pretrained = False  # the weights are in the checkpoint


def _settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """All settings that a checkpoint keeps, by option."""
    model = {f"model.{name}": value for name, value in checkpoint.hyper_parameters.items()}
    data = {f"data.{name}": value for name, value in checkpoint.details.get("data", {}).items()}
    facts = checkpoint.details.get("fit", {})
    return {**model, **data, **{name: facts[name] for name in ("monitor",) if name in facts}}


def _same(given: Any, fitted: Any) -> bool:
    from finetune.training.checkpoints import plain

    given = given.as_dict() if hasattr(given, "as_dict") else given
    return bool(plain(given) == plain(fitted))


def copy_candidates(source: Path, target: Path) -> None:
    """Take what earlier phases have found along into a new run folder."""
    if source.absolute() == target.absolute():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in [*source.glob("best.ckpt"), *source.glob("phase*.ckpt")]:
        write_bytes(target / path.name, path.read_bytes())
