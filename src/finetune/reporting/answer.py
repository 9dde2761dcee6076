"""The answer that a report opens with: sentences, and advice by a few rules, each with its reason.

The rules that a task's own figures give are in :mod:`finetune.reporting.words`; those here hold for
any task. The order is that of use: what would make the other figures wrong comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from finetune.evaluation.comparison import Leaderboard
from finetune.evaluation.judgement import Judgement
from finetune.reporting.details import ReportDetails
from finetune.reporting.triage import LabelSuspect, credible
from finetune.reporting.words import Advice, listed, share, words_of

FEW_TO_LEARN_FROM = 10  # train images of a class
WIDE = 0.1  # an interval of a share
BY_HEART = 2.0  # so many times the loss of the train images


class Answer(NamedTuple):
    """What a reader needs to know, in words.

    Attributes:
        sentences: the first says how good.
        advice: what to do next, the most useful first.
    """

    sentences: tuple[str, ...]
    advice: tuple[Advice, ...]

    def __str__(self) -> str:
        """The short form, for a terminal: the sentences, and the first advice."""
        following = [f"next      {each.do}: {each.because}" for each in self.advice[:1]]
        return "\n".join([f"answer    {' '.join(self.sentences)}", *following])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sentences": list(self.sentences),
            "next": [each._asdict() for each in self.advice],
        }


def answer_of(
    evaluation: Judgement, details: ReportDetails, suspects: Sequence[LabelSuspect] = ()
) -> Answer:
    """What the figures say.

    Args:
        evaluation: the answers, judged.
        details: what else is known.
        suspects: of wrong labels; the credible ones are spoken of.
    """
    words = words_of(evaluation)
    suspected = credible(evaluation, suspects)
    strange = [suspect.reason for suspect in suspected].count("no class")
    unsure = len(least_sure(evaluation))
    sentences = (
        *words.sentences,
        *words.trust,
        *_if_any(unsure, "image is", "images are", "much less sure than the rest."),
        *_if_any(len(suspected) - strange, "label looks", "labels look", "wrong."),
        *_if_any(strange, "image is", "images are", "unlike all others."),
    )
    advice = [
        *_seen(details),
        *_look_at_labels(len({suspect.index for suspect in suspected})),
        *_few(details),
        *words.advice,
        *_hold_out_more(evaluation),
        *_by_heart(details),
    ]
    return Answer(sentences, tuple(advice or _stronger(evaluation)))


def board_answer(board: Leaderboard) -> Answer:
    """Which of several is best, and which cannot be told from it."""
    best, *others = board.evaluations
    lead = board.evaluations[best].leading[0]
    images = len(board.evaluations[best].paths)
    equal = [name for name in others if name in board.as_good_as_the_best]
    worse = [name for name in others if name not in equal]
    interval = f" {lead.shown_interval}" if lead.shown_interval else ""
    sentences = [f"{best} is first: {lead.name} {lead.shown}{interval} on {images} images."]
    if worse:
        sentences.append(f"Clearly worse: {listed(worse)}.")
    if not equal:
        return Answer(tuple(sentences), ())
    sentences.append(f"Not distinguishable from it: {listed(equal)}.")
    reason = f"by {images} images nothing tells them apart"
    do = f"Take the cheapest of {listed([best, *equal])}, or compare them on more images"
    return Answer(tuple(sentences), (Advice(do, reason),))


def least_sure(evaluation: Judgement) -> list[int]:
    """Indexes of the images whose answer is less than half as sure as that in the middle."""
    sure = evaluation.confidences
    if sure is None:
        return []
    far = np.flatnonzero(sure < np.median(sure) / 2)
    return [int(index) for index in far[np.argsort(sure[far], kind="stable")]]


def _count(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _if_any(count: int, one: str, more: str, what: str) -> list[str]:
    return [f"{_count(count, one, more)} {what}"] if count else []


def _seen(details: ReportDetails) -> list[Advice]:
    if details.stage != "val":
        return []
    reason = "these val images have chosen what was kept, so the figures flatter"
    return [Advice("Judge it on images that nothing was chosen by: `finetune test`", reason)]


def _look_at_labels(images: int) -> list[Advice]:
    if not images:
        return []
    reason = "what is seen speaks against it, and a wrong label teaches and judges wrongly"
    which = "image whose label" if images == 1 else f"{images} images whose labels"
    return [Advice(f"Look at the {which} may be wrong", reason)]


def _few(details: ReportDetails) -> list[Advice]:
    counts = (details.class_counts or {}).get("train", {})
    few = sorted((n, name) for name, n in counts.items() if n < FEW_TO_LEARN_FROM)
    if not few:
        return []
    told = listed([f"{name} ({n})" for n, name in few])
    reason = f"fewer than {FEW_TO_LEARN_FROM} train images"
    return [Advice(f"Add images of {listed([name for _, name in few])}", f"{reason}: {told}")]


def _hold_out_more(evaluation: Judgement) -> list[Advice]:
    lead, images = evaluation.leading[0], len(evaluation.paths)
    if lead.kind != "share" or lead.interval is None or lead.interval[1] - lead.interval[0] < WIDE:
        return []
    low, high = (share(end) for end in lead.interval)
    reason = f"by {images} images the {lead.name} may be anything from {low} to {high}"
    return [Advice(f"Test on more images: {4 * images} would halve the interval", reason)]


def _by_heart(details: ReportDetails) -> list[Advice]:
    curves = details.learning_curves or {}
    train, val = (curves.get(f"{stage}/loss") for stage in ("train", "val"))
    if not train or not val or not val[-1][1] > BY_HEART * max(train[-1][1], 0):
        return []
    do = "Add train images, or ask for more varied views: `--data.augmentation strong`"
    reason = f"the loss ends at {train[-1][1]:.2f} on train images and {val[-1][1]:.2f} on others"
    return [Advice(do, reason)]


def _stronger(evaluation: Judgement) -> list[Advice]:
    errors = len(evaluation.errors())
    if not errors:
        return []
    reason = f"no class, label or figure stands out behind the {_count(errors, 'error', 'errors')}"
    return [Advice("Look for a stronger backbone: `finetune choose DIR`", reason)]
