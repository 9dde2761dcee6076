"""What learns when: a strategy is a plain sequence of phases, and each phase is one fit.

Separate fits, not one fit that changes its mind: every phase has its own trainer, optimizer and
schedule, so a phase can be resumed, replicas stay equal under DDP, and no scheduler meets a
parameter group that it does not know.

======================  =====================================================================
``head``                the final layer alone, fitted to its optimum on features computed once
``head-then-all``       that, then everything with small steps (Kumar et al. 2022)
``gradual``             that, then one stage more at a time, from the top to the stem
``partial:N``           that, then the final layer and the N stages below it
``all``                 everything from the start; the only one for a network without pretraining
======================  =====================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.errors import UsageError

STRATEGIES = ("auto", "head", "head-then-all", "gradual", "all", "partial:N")


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of a strategy.

    Attributes:
        kind: ``"probe"`` fits the final layer in closed form, without a trainer; ``"train"`` is
            one fit by gradient steps.
        boundary: the lowest stage that learns; everything below it stands still.
        share: part of the fit's epochs, in (0, 1]; 0 for a probe.
    """

    kind: Literal["probe", "train"]
    boundary: str
    share: float = 0.0


def parse_strategy(strategy: str) -> tuple[str, int]:
    """A strategy's name and, for ``partial:N``, its N (else 0).

    Raises:
        UsageError: no such strategy; the nearest is named.
    """
    name, colon, number = strategy.partition(":")
    if name == "partial" and number.isdigit() and int(number) > 0:
        return name, int(number)
    if strategy in STRATEGIES and name != "partial" and not colon:
        return name, 0
    near = difflib.get_close_matches(strategy, STRATEGIES, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UsageError(
        f"Expected a strategy out of {', '.join(STRATEGIES)} (N from 1), found {strategy!r}{hint}"
    )


def phases_of(strategy: str, stages: Sequence[str]) -> tuple[Phase, ...]:
    """The phases of a strategy on a network with these stages, from the stem to ``"head"``.

    Raises:
        UsageError: no such strategy, or ``partial`` with more stages than there are below the
            final layer.
    """
    name, number = parse_strategy(strategy)
    probe = Phase("probe", "head")
    match name:
        case "head":
            return (probe,)
        case "all":
            return (Phase("train", stages[0], 1.0),)
        case "head-then-all":
            return (probe, Phase("train", stages[0], 1.0))
        case "partial":
            if number >= len(stages):
                raise UsageError(
                    f"Expected partial:1 to partial:{len(stages) - 1} for stages "
                    f"{', '.join(stages)}, found partial:{number}."
                )
            return (probe, Phase("train", stages[-1 - number], 1.0))
        case "gradual":
            lower = [stage for stage in reversed(stages) if stage != "head"]
            return (probe, *(Phase("train", stage, 1 / len(lower)) for stage in lower))
    raise UsageError(f"Expected a resolved strategy, found {strategy!r}; see choose_recipe.")


def epochs_of(phases: Sequence[Phase], epochs: int) -> list[int]:
    """Whole epochs of each phase, adding up to ``epochs`` where there are enough to go round.

    A training phase gets at least one epoch; what is left over goes to the later ones, which
    train more of the network.
    """
    shares = [phase.share for phase in phases]
    counts = [max(1, int(epochs * share + 1e-9)) if share else 0 for share in shares]
    for index in reversed(range(len(phases))):
        if sum(counts) >= epochs:
            break
        if shares[index]:
            counts[index] += 1
    return counts
