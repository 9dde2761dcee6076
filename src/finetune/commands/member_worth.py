"""What each member of an ensemble and the whole are worth on held-out images, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.combining.ensemble import Ensemble
    from finetune.combining.held_out import HeldOut
    from finetune.spec.choices import Metric, Selecting


def describe_ensemble(
    whole: Ensemble, chosen: Ensemble, held_out: HeldOut, of_chosen: HeldOut
) -> list[str]:
    """A row a member or recipe, one for the ensemble, its diversity, and whether it is best."""
    from finetune.combining.diversity import diversity

    judged = chosen.task.held_out_loss
    rows = picking_rows(chosen, held_out)
    labels, members = held_out.labels[rows], held_out.member_logits[:, rows]
    kept = [0.0] * len(whole.parts)
    for position, value in zip(
        _positions(whole.member_names, chosen.member_names), chosen.coefficients, strict=True
    ):
        kept[position] = value
    names = row_names(whole, held_out)
    width = max(len("ensemble"), *map(len, names))

    def figures(logits: Tensor, votes: bool = False) -> str:
        said = chosen.task.in_words(logits, labels)
        # Shares of votes are no probabilities: their likelihood says nothing.
        return said.partition("  nll ")[0] if votes else said

    lines = [
        f"{name:<{width}}  {figures(member)}  coefficient {value:.3f}"
        f"  {1000 * seconds / max(len(held_out.ids), 1):.1f} ms an image"
        for name, member, value, seconds in zip(
            names, members, held_out.of_rows(kept), held_out.seconds, strict=True
        )
    ]
    pooled = chosen.pool_held_out(of_chosen, rows)
    metric: Metric = "accuracy" if chosen.pooling == "vote" else "nll"
    lines.append(f"{'ensemble':<{width}}  {figures(pooled, votes=metric == 'accuracy')}")
    answers = of_chosen.member_logits[:, rows]
    if chosen.task.has_choices:
        found = diversity(
            *chosen.task.rows(answers, labels),
            of_chosen.of_rows(chosen.coefficients),
            pooling=chosen.pooling,
            metric=metric,
        )
        pairs = max(len(answers) * (len(answers) - 1), 1)
        lines.append(
            f"disagreement of two members {float(found.disagreement.sum()) / pairs:.3f}; "
            f"one of them right {found.oracle_accuracy:.4f}; "
            f"pooling gains {found.ambiguity:.4f} {metric}"
        )
    best = min(judged(member, labels, metric) for member in members)
    gain = best - judged(pooled, labels, metric)
    verdict = "better than" if gain > 1e-9 else "equal to" if gain > -1e-9 else "worse than"
    word = metric if chosen.task.has_choices else chosen.task.deciding
    lines.append(
        f"the ensemble is {verdict} the best member by held-out {word} ({gain:+.4f}) "
        f"on {len(rows)} images"
    )
    return lines


def honest_accuracy(
    chosen: Ensemble,
    held_out: HeldOut,
    *,
    method: Selecting,
    metric: Metric,
    max_members: int | None,
    seed: int,
) -> str:
    """The ensemble's accuracy with its interval, on answers that no selection has profited from."""
    from finetune.combining.selection import choose_coefficients, cross_validated_answers
    from finetune.evaluation.intervals import wilson_interval
    from finetune.tasks.multiclass import MULTICLASS

    rows = picking_rows(chosen, held_out)
    labels = held_out.labels[rows]
    if method == "all":
        kind, answers = "held-out", chosen.pool_held_out(held_out, rows)
    elif len(rows) < 2:
        return "too few held-out images to say how good the ensemble is"
    else:
        kind = "cross-validated"
        answers = cross_validated_answers(
            chosen.task,
            held_out.member_logits[:, rows],
            labels,
            lambda members, truth: choose_coefficients(
                *chosen.task.rows(members, truth),
                method=method,
                metric=chosen.task.measure(metric),
                pooling=chosen.pooling,
                max_members=max_members,
            ),
            pooling=chosen.pooling,
            seed=seed,
        )
    if chosen.task != MULTICLASS:
        loss, word = chosen.task.held_out_loss(answers, labels, "nll"), chosen.task.deciding
        return f"{kind} {word} of the ensemble {loss:.4f} ({len(labels)} images)"
    right = int((chosen.task.decide(answers) == labels).sum())
    low, high = wilson_interval(right, len(labels))
    source = " out-of-fold answers" if held_out.is_out_of_fold else " images"
    return (
        f"{kind} accuracy of the ensemble {right / len(labels):.4f} "
        f"(95 % interval {low:.3f} to {high:.3f}, {len(labels)}{source})"
    )


def picking_rows(chosen: Ensemble, held_out: HeldOut) -> list[int]:
    """The images that picked; all of them where none has, for then all show the members."""
    picked = set(chosen.roles.get("pick", held_out.ids))
    rows = [row for row, identity in enumerate(held_out.ids) if identity in picked]
    return rows or list(range(len(held_out.ids)))


def row_names(whole: Ensemble, held_out: HeldOut) -> list[str]:
    """The members' names; of several folds the group's, or the first one's."""
    names = []
    for column in held_out.columns or [(index,) for index in range(len(whole.parts))]:
        name = whole.member_names[column[0]]
        run = Path(name).parent.parent
        if len(column) > 1:
            name = f"{run.parent if run.name else name} ({len(column)} folds)"
        names.append(name)
    return names


def _positions(names: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """Where the chosen members stand among all, also when one file was given twice."""
    positions: list[int] = []
    for name in chosen:
        positions.append(
            next(i for i, each in enumerate(names) if each == name and i not in positions)
        )
    return positions
