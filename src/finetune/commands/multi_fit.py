"""``fit --seeds N``, ``--folds N`` or ``--backbones A,B``: several members in one group.

``runs/<name>-<n>/seed-0-1``, ``seed-1-1``, ...: fits that share their split, decoded images and
frozen features, and differ in order, random views and initial weights; or one fit for each fold; or
a final layer on each backbone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from finetune.commands.config_files import check_texts
from finetune.commands.parallel_fits import (
    device_options,
    fit_in_a_process,
    fits_on_cpu,
    run_side_by_side,
)
from finetune.commands.parsing import take, take_all
from finetune.commands.resume import refuse_what_is_decided
from finetune.documents import read_json
from finetune.errors import FinetuneError, UsageError
from finetune.files import write_text
from finetune.processes import ProcessesNeeded
from finetune.spec.choices import Engine
from finetune.spec.run_files import MEMBERS as MEMBERS_SCHEMA

MEMBERS = "members.json"
BACKBONES = ("--backbones", "--model.backbones")  # two spellings
BACKBONE, STRATEGY = "--model.backbone", "--model.strategy"
SPOKEN = ("--track-to", "--imports")  # options that count on the command line only


@dataclass(frozen=True, slots=True)
class MultiFit:
    """What to fit: the members' names, each with its options, and the options that all share.

    Those beside ``--resume`` are shared too, and interrupted members are resumed by them.
    ``engine`` says where they are fitted: here, or as tasks of Ray on the cluster at ``address``.
    """

    members: dict[str, list[str]]
    shared: list[str]
    beside: tuple[str, ...] = ()
    engine: Engine = "local"
    address: str | None = None

    @property
    def is_of_backbones(self) -> bool:
        """Whether each has a backbone of its own."""
        return all(any(o.startswith(f"{BACKBONE}=") for o in own) for own in self.members.values())


def many_fits(arguments: Sequence[str]) -> MultiFit | None:
    """The members that an option for several asks for; None for a single fit.

    Raises:
        UsageError: two such options, or fewer than two members.
    """
    rest, seeds = take(arguments, "--seeds")
    rest, folds = take(rest, "--folds")
    rest, backbones = take(rest, BACKBONES[0])
    if backbones is None:
        rest, backbones = take(rest, BACKBONES[1])
    rest, where = _take_engine(rest)
    if seeds is None and folds is None and backbones is None:
        if len(rest) < len(arguments) and take(rest, "--resume")[1] is None:
            raise UsageError(
                "Expected several members beside --engine, found one fit; add --seeds N or "
                "--folds N."
            )
        return None
    if sum(each is not None for each in (seeds, folds, backbones)) > 1:
        raise UsageError("Expected --seeds, --folds or --backbones, found two; leave one out.")
    if backbones is not None:
        return MultiFit(_of_backbones(backbones, rest), rest, (), *where)
    number = _number(seeds if folds is None else folds)
    if folds is None:
        members = {f"seed-{n}": [f"--seed_everything={n}"] for n in range(number)}
    else:
        members = {
            f"fold-{n}": [f"--data.folds={number}", f"--data.fold={n}"] for n in range(number)
        }
    return MultiFit(members, rest, (), *where)


def _take_engine(arguments: Sequence[str]) -> tuple[list[str], tuple[Engine, str | None]]:
    """The other arguments, and where members are fitted.

    Raises:
        UsageError: no engine of this name, or an address without Ray.
    """
    rest, engine = take(arguments, "--engine")
    rest, address = take(rest, "--address")
    if engine not in (None, *get_args(Engine)) or (address and engine != "ray"):
        raise UsageError(
            f"Expected --engine local or ray, --address beside ray alone, found {engine or 'none'}"
            f"{' and an address' * bool(address)}; correct it."
        )
    return rest, ("ray" if engine == "ray" else "local", address)


def _of_backbones(names: str, shared: Sequence[str]) -> dict[str, list[str]]:
    """A final layer on each: what a joint one can be made of."""
    from finetune.commands.choose import named_backbones

    for option, value in ((BACKBONE, None), (STRATEGY, "head"), ("--model.pretrained", None)):
        _, given = take(shared, option)
        if given not in (None, value):
            raise UsageError(
                "Expected final layers alone on the backbones that --backbones names, each perhaps "
                f"with its weights as NAME=FILE, found {option} {given}; leave it out."
            )
    backbones = named_backbones([names], offline=False)
    if len(backbones) < 2:
        raise UsageError(f"Expected two backbones or more, found {names}; give --backbones A,B.")
    return {
        re.sub(r"[^\w.-]+", "-", each.backbone).strip("-."): [
            f"{BACKBONE}={each.backbone}",
            *([] if each.pretrained is True else [f"--model.pretrained={each.pretrained}"]),
            f"{STRATEGY}=head",
        ]
        for each in backbones
    }


def fit_many(fits: MultiFit, group: Path) -> int:
    """Fit the members that are not there yet; one that fails stops no other.

    They follow each other, or run at the same time where there are several accelerators.

    Returns:
        0 if all members are there in the end, else 1.
    """
    # What only the person at the command line may decide is never kept in a file.
    kept, _ = without_spoken(fits.shared)
    write_text(group / MEMBERS, json.dumps({"members": fits.members, "shared": kept}))
    names = [name for name in fits.members if not finished(group, name)]
    for name in fits.members.keys() - names:
        print(f"{name}: there already")
    if fits.engine == "ray":
        from finetune.commands.fits_on_ray import fit_on_ray

        on_cpu = fits_on_cpu(fits.shared)
        fit = partial(_fit_now, fits, group)
        problems = fit_on_ray(names, fit, fits.address, on_cpu=on_cpu)
    else:
        calls = {name: _call(fits, group, name) for name in names}
        problems = _fit_all(calls, device_options(fits.shared))
    failed = [name for name in problems if not finished(group, name)]
    for name in failed:
        problem = problems[name] or "it ended, but its run folder does not say that it was fitted"
        print(f"{name} failed: {problem}", file=sys.stderr)
    there = len(fits.members) - len(failed)
    print(f"\n{there} of {len(fits.members)} members in {group}")
    if failed:
        print(f"again for the others: finetune fit --resume {group}")
    elif fits.is_of_backbones:
        from finetune.commands.joined_backbones import deliver_together

        deliver_together(group)
    else:
        if "fold-0" in fits.members:
            print(f"next: finetune report {group}/fold-*-1 --folds --output folds.html")
        print(f"next: finetune ensemble {group} --data.root DIR --output ensemble.ckpt")
    return 1 if failed else 0


def _call(fits: MultiFit, group: Path, name: str) -> list[str]:
    """The options of a member's fit."""
    if interrupted := _interrupted(group, name):
        # Its settings lie in its own folder.
        return [f"--resume={interrupted}", *fits.beside]
    return [*fits.shared, *fits.members[name], f"--runs={group}", f"--name={name}"]


def _fit_now(fits: MultiFit, group: Path, name: str) -> str | None:
    """Fit a member, or resume it where a process that has gone has left it."""
    return None if finished(group, name) else _fit_here(name, _call(fits, group, name))


def _fit_all(
    calls: Mapping[str, Sequence[str]], devices: Sequence[list[str]]
) -> dict[str, str | None]:
    """Why each member failed, or None."""
    if len(devices) == 1:
        return {name: _fit_here(name, arguments) for name, arguments in calls.items()}
    jobs = {
        name: lambda options, name=name: fit_in_a_process(name, [*calls[name], *options])
        for name in calls
    }
    return run_side_by_side(jobs, devices)


def _fit_here(name: str, arguments: Sequence[str]) -> str | None:
    from finetune.commands import fit

    print(f"\n{name}", flush=True)
    try:
        fit.main(list(arguments))
    except ProcessesNeeded:
        return fit_in_a_process(name, arguments)
    except (FinetuneError, RuntimeError, OSError, ValueError) as error:
        return str(error)
    return None


def is_group(path: str | Path) -> bool:
    """Whether a folder holds the members of one fit of several."""
    return (Path(path) / MEMBERS).is_file()


def member_files(path: str | Path) -> list[Path]:
    """The checkpoint of each member that is there, best fitted to be combined.

    Where the best of every seed is the final layer alone, the fine-tuned ones: probes of one split
    are alike whatever their seed, so together they would bring nothing.

    Raises:
        UsageError: there is none yet.
    """
    from finetune.training.checkpoints import read_checkpoint

    group = Path(path)
    names = read_json(group / MEMBERS, MEMBERS_SCHEMA)["members"]
    files = [found for name in names if (found := _best(group, name)) is not None]
    if not files:
        raise UsageError(
            f"Expected fitted members in {group}, found none; finish them with "
            f"`finetune fit --resume {group}`."
        )
    tuned = [file.with_name("phase2.ckpt") for file in files]
    of_seeds = any(name.startswith("seed-") for name in names)
    if of_seeds and all(file.is_file() for file in tuned):
        fits = [read_checkpoint(file, mmap=True).details["fit"] for file in files]
        if not any(fit["phase"] for fit in fits):
            print("the final layer alone is the best of each, and alike; took the fine-tuned ones")
            return tuned
    return files


def with_members(paths: Sequence[str]) -> list[str]:
    """The paths, each group of fits replaced by its members."""
    return [
        str(file)
        for path in paths
        for file in (member_files(path) if is_group(path) else [Path(path)])
    ]


def _best(group: Path, name: str) -> Path | None:
    found = sorted(group.glob(f"{name}-*/checkpoints/best.ckpt"))
    return found[-1] if found else None


def resumed_group(arguments: Sequence[str]) -> tuple[MultiFit, Path] | None:
    """The group that ``--resume GROUP`` names, if it is a group.

    Raises:
        UsageError: an option by which the members would no longer be fits of one kind, or a group
            that decides what only the command line may.
    """
    rest, value = take(arguments, "--resume")
    rest, where = _take_engine(rest)
    path = Path(value) if value else None
    if path is None or not (path / MEMBERS).is_file():
        return None
    kept = read_json(path / MEMBERS, MEMBERS_SCHEMA)
    refuse_what_is_decided(rest, path, members=True)
    shared = kept.get("shared", [])
    for options in (shared, *kept["members"].values()):
        check_texts([option.partition("=")[2] or option for option in options], path)
        _, spoken = without_spoken(options, (*SPOKEN, "--seeds", "--folds", *BACKBONES, "--resume"))
        if spoken:
            raise UsageError(
                f"Expected {spoken[0].partition('=')[0]} on the command line, found it in "
                f"{path / MEMBERS}; give it there."
            )
    return MultiFit(kept["members"], [*shared, *rest], tuple(rest), *where), path


def without_spoken(
    arguments: Sequence[str], options: Sequence[str] = SPOKEN
) -> tuple[list[str], list[str]]:
    """The arguments without those that no file may give, and those."""
    rest, spoken = list(arguments), []
    for option in options:
        rest, values = take_all(rest, option)
        spoken += [f"{option}={value}" for value in values]
    return rest, spoken


def finished(group: Path, name: str) -> bool:
    """Whether a member's fit came to its end, as its own run folder says."""
    from finetune.training.metrics_file import read_metrics

    return any(
        (run / "checkpoints/best.ckpt").is_file()
        and read_metrics(run).get("fit", {}).get("finished", False)
        for run in group.glob(f"{name}-*")
    )


def _interrupted(group: Path, name: str) -> Path | None:
    runs = [run for run in group.glob(f"{name}-*") if (run / "checkpoints/last.ckpt").is_file()]
    return runs[-1] if runs else None


def _number(text: str | None) -> int:
    if text is None or not text.isdigit() or int(text) < 2:
        raise UsageError(f"Expected two members or more, found {text!r}; give a number from 2.")
    return int(text)
