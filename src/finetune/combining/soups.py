"""Averages of checkpoint files: many fits of one backbone into one classifier of the same size.

Sources: Wortsman et al., Model soups, 2022 (uniform, greedy); Wortsman et al., Robust fine-tuning
of zero-shot models, 2022 (interpolation); Izmailov et al., Averaging weights leads to wider optima,
2018 (statistics after averaging).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

from torch import Tensor

from finetune.combining.averaged_checkpoint import Soup
from finetune.combining.averaging import (
    RunningAverage,
    interpolate_state_dicts,
    normalised_coefficients,
)
from finetune.combining.ingredients import Ingredient, read_ingredient, survey
from finetune.combining.soup_evaluation import Score, WeightsEvaluator, warn_of_barrier
from finetune.errors import UsageError
from finetune.runtime import Runtime
from finetune.spec.choices import Averaging, BatchNormOfAverage, Metric, Share
from finetune.spec.images import Split, file_id
from finetune.spec.protocols import HeldOutData
from finetune.training.checkpoints import describe
from finetune.training.fitted_splits import split_entries
from finetune.training.thresholds import in_order, mean_thresholds

# Of the curve between two checkpoints.
CURVE = tuple(step / 10 for step in range(11))


def average_checkpoints(
    paths: Sequence[str | Path],
    *,
    method: Averaging = "uniform",
    coefficients: Sequence[float] | None = None,
    datamodule: HeldOutData | None = None,
    metric: Metric = "nll",
    batchnorm: BatchNormOfAverage = "auto",
    share: Share = "half",
    split: Split = "val",
    accelerator: str = "auto",
) -> Soup:
    """Average the weights of checkpoints of one backbone, of one run or of many.

    Files are mapped into memory one after another: beside the network that is judged, the memory
    holds one accumulator, one member and the result, whatever the number of files.

    Args:
        paths: checkpoint files, or run folders, whose best checkpoint is taken.
        method: ``uniform``; ``weighted`` by ``coefficients``; ``greedy``: from the best member on,
            each next one stays if it does not lower the held-out score; ``interpolate``: the best
            point of the line from the first to the second of two checkpoints, or the point of
            ``coefficients``, ``[t]`` or ``[1 - t, t]``.
        coefficients: one a checkpoint, for ``weighted``.
        datamodule: whose held-out images judge; ``greedy`` needs one.
        metric: what decides, in its own direction; ties go to the lower NLL.
        batchnorm: ``average`` the running statistics; ``update`` them on training images; or
            ``auto``: try both and keep what is better on the held-out images. Members tuned with
            batch norm in ``eval`` mode are never updated.
        share: the picking ``half`` of the held-out images, or ``all`` of them.
        split: the held-out images.
        accelerator: where they are judged, see :meth:`finetune.runtime.Runtime.chosen`.

    Raises:
        CheckpointMismatchError: checkpoints that cannot be averaged, with the reason.
        UsageError: settings that contradict each other.

    Examples:
        >>> soup = finetune.average_checkpoints(["runs/pets-1", "runs/pets-2"])
        >>> soup.coefficients
        (0.5, 0.5)
        >>> soup.save("soup.ckpt")
    """
    ingredients = survey(paths)
    _check_settings(method, coefficients, datamodule, batchnorm, ingredients)
    evaluator = None
    if datamodule is not None:
        runtime = Runtime.chosen(accelerator)
        evaluator = WeightsEvaluator(ingredients[0], datamodule, metric, share, split, runtime)
    search = _SoupSearch(ingredients, evaluator, batchnorm)
    match method:
        case "uniform" | "weighted":
            return search.weighted(normalised_coefficients(coefficients, len(ingredients)))
        case "greedy":
            return search.greedy()
        case "interpolate":
            return search.interpolate(None if coefficients is None else float(coefficients[-1]))
        case _:
            assert_never(method)


class _SoupSearch:
    """What every method needs: the files, and what evaluates weights."""

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        evaluator: WeightsEvaluator | None,
        batchnorm: BatchNormOfAverage,
    ) -> None:
        self.ingredients = ingredients
        self.class_names = ingredients[0].checkpoint.class_names
        self.evaluator = evaluator
        self.may_update = all(each.batchnorm == "train" for each in ingredients)
        self.batchnorm = batchnorm
        self.picked = False  # whether held-out images have decided anything

    def weighted(self, coefficients: Sequence[float]) -> Soup:
        """The average; with held-out images also judged, and checked for a barrier."""
        used = [index for index, value in enumerate(coefficients) if value > 0]
        averaged = self._average(used, [coefficients[index] for index in used])
        if self.evaluator is None:
            return self._soup(averaged, coefficients)
        member_scores = tuple(self.evaluator.evaluate(self._read(i)) for i in self._everyone())
        self._warn_of_barrier(used, member_scores)
        averaged, score, batchnorm = self._finish(averaged, len(used))
        return self._soup(
            averaged, coefficients, batchnorm=batchnorm, score=score, member_scores=member_scores
        )

    def greedy(self) -> Soup:
        """Wortsman et al.'s greedy soup; never below the best member on the picking images."""
        assert self.evaluator is not None
        member_scores = tuple(self.evaluator.evaluate(self._read(i)) for i in self._everyone())
        self.picked = True
        order = sorted(self._everyone(), key=lambda i: (member_scores[i].sort_key, i))
        self._warn_of_barrier(order[:2], member_scores)
        chosen, best = [order[0]], member_scores[order[0]]
        for index in order[1:]:
            trial = self._average([*chosen, index])
            score = self.evaluator.evaluate(trial)
            if score.no_worse_than(best):
                chosen, best = [*chosen, index], score
            del trial
        averaged, score, batchnorm = self._finish(self._average(chosen), len(chosen), best)
        coefficients = [float(index in chosen) for index in self._everyone()]
        return self._soup(
            averaged,
            normalised_coefficients(coefficients, len(coefficients)),
            batchnorm=batchnorm,
            score=score,
            member_scores=member_scores,
        )

    def interpolate(self, coefficient: float | None) -> Soup:
        """A point between the first checkpoint (0) and the second (1)."""
        start, end = self._read(0), self._read(1)
        if self.evaluator is None:
            assert coefficient is not None
            averaged = interpolate_state_dicts(start, end, coefficient)
            return self._soup(averaged, [1 - coefficient, coefficient])
        points = CURVE if coefficient is None else (0.0, coefficient, 1.0)
        curve = tuple(
            (point, self.evaluator.evaluate(interpolate_state_dicts(start, end, point)))
            for point in points
        )
        if coefficient is None:
            self.picked = True
            # Of equal scores the one nearest to the fine-tuned end.
            coefficient, _ = min(curve, key=lambda item: (item[1].sort_key, -item[0]))
        warn_of_barrier(dict(curve).get(0.5), curve[0][1], curve[-1][1], ("0", "1"))
        averaged, score, batchnorm = self._finish(
            interpolate_state_dicts(start, end, coefficient), 1 + (0 < coefficient < 1)
        )
        return self._soup(
            averaged,
            [1 - coefficient, coefficient],
            batchnorm=batchnorm,
            score=score,
            member_scores=(curve[0][1], curve[-1][1]),
            curve=curve,
        )

    def _everyone(self) -> range:
        return range(len(self.ingredients))

    def _read(self, index: int) -> dict[str, Tensor]:
        return read_ingredient(self.ingredients[index], self.class_names)

    def _average(
        self, indexes: Sequence[int], coefficients: Sequence[float] | None = None
    ) -> dict[str, Tensor]:
        average = RunningAverage()
        shares = normalised_coefficients(coefficients, len(indexes))
        for index, share in zip(indexes, shares, strict=True):
            average.add(self._read(index), share, source=self.ingredients[index].name)
        return average.result()

    def _finish(
        self, averaged: dict[str, Tensor], members: int, limit: Score | None = None
    ) -> tuple[dict[str, Tensor], Score, str]:
        """The better of averaged and re-estimated batch-norm statistics, as far as allowed.

        With a limit, the averaged ones are known to reach it, and no others may fall below it.
        """
        assert self.evaluator is not None
        score = self.evaluator.evaluate(averaged) if limit is None else limit
        if members < 2 or not self.may_update or self.batchnorm == "average":
            return averaged, score, "average"
        updated = self.evaluator.reestimated(averaged)
        self.picked |= self.batchnorm == "auto"
        updated_score = self.evaluator.evaluate(updated)
        if limit is not None and not updated_score.no_worse_than(limit):
            if self.batchnorm == "update":
                warnings.warn(
                    "Kept the averaged batch-norm statistics: with estimates from the training "
                    "images the average would fall below its best member.",
                    stacklevel=4,
                )
            return averaged, score, "average"
        if self.batchnorm == "update" or not score.no_worse_than(updated_score):
            return updated, updated_score, "update"
        return averaged, score, "average"

    def _roles(self) -> dict[str, list[str]]:
        """The images that picked something, for this soup or for a member of it."""
        used = {identity for each in self.ingredients for identity in each.roles.get("pick", ())}
        if self.picked and self.evaluator is not None:
            used |= set(self.evaluator.ids)
        return {"pick": sorted(used)} if used else {}

    def _warn_of_barrier(self, indexes: Sequence[int], scores: Sequence[Score]) -> None:
        """Look half-way between the best two of these members."""
        assert self.evaluator is not None
        if len(indexes) < 2:
            return
        first, second = sorted(indexes, key=lambda index: scores[index].sort_key)[:2]
        half_way = self.evaluator.evaluate(self._average([first, second]))
        names = self.ingredients[first].name, self.ingredients[second].name
        warn_of_barrier(half_way, scores[first], scores[second], names)

    def _soup(
        self,
        state_dict: dict[str, Tensor],
        coefficients: Sequence[float],
        *,
        batchnorm: str = "average",
        score: Score | None = None,
        member_scores: tuple[Score, ...] = (),
        curve: tuple[tuple[float, Score], ...] = (),
    ) -> Soup:
        first = self.ingredients[0].checkpoint
        members = [
            {
                "path": each.name,
                "fingerprint": file_id(each.name),
                "coefficient": coefficient,
                "averaged_during_training": each.averaged_during_training,
            }
            for each, coefficient in zip(self.ingredients, coefficients, strict=True)
        ]
        details: dict[str, Any] = {"provenance": {"members": members, "batchnorm": batchnorm}}
        # What was held out of one may have trained another: whoever judges later must know.
        details |= split_entries(record for each in self.ingredients for record in each.fitted_on)
        licences = {each.checkpoint.details.get("licence", "") for each in self.ingredients} - {""}
        if licences:
            details["licence"] = ", ".join(sorted(licences))
        roles = self._roles()
        if roles:
            details["roles"] = roles
        if self.evaluator is not None:
            details["val"] = self.evaluator.answers(state_dict)
        else:
            names = first.class_names
            chosen = [
                in_order(e.thresholds, e.checkpoint.class_names, names) for e in self.ingredients
            ]
            if (thresholds := mean_thresholds(chosen, coefficients)) is not None:
                details["thresholds"] = list(thresholds)
        return Soup(
            state_dict=state_dict,
            hyper_parameters=first.hyper_parameters,
            entry=describe(
                first.class_names,
                first.backbone,
                first.preprocessing,
                network=first.network,
                task=first.task,
                **details,
            ),
            coefficients=tuple(coefficients),
            batchnorm=batchnorm,
            score=score,
            member_scores=member_scores,
            curve=curve,
        )


def _check_settings(
    method: Averaging,
    coefficients: Sequence[float] | None,
    datamodule: HeldOutData | None,
    batchnorm: BatchNormOfAverage,
    ingredients: Sequence[Ingredient],
) -> None:
    if method == "weighted" and coefficients is None:
        raise UsageError("Expected coefficients with method weighted, found none; give one each.")
    if method in ("uniform", "greedy") and coefficients is not None:
        raise UsageError(f"Expected no coefficients with {method}; take method weighted.")
    if method == "greedy" and datamodule is None:
        raise UsageError("Expected held-out images for method greedy, found none; give data.")
    if method == "interpolate":
        if len(ingredients) != 2:
            raise UsageError(
                f"Expected two checkpoints to interpolate, found {len(ingredients)}; "
                "give the earlier one first."
            )
        if coefficients is None and datamodule is None:
            raise UsageError(
                "Expected a coefficient or held-out images to choose one, found neither; "
                "give one of them."
            )
    if batchnorm == "update":
        if datamodule is None:
            raise UsageError(
                "Expected training images to update batch-norm statistics, found none; give data."
            )
        kept = [each.name for each in ingredients if each.batchnorm != "train"]
        if kept:
            raise UsageError(
                f"Expected members tuned with batch norm in train mode, found {kept[0]} tuned in "
                "eval mode, whose statistics must stay; take --batchnorm average."
            )
