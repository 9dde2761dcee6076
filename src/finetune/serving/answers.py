"""The answers of :class:`Predictions` as JSON has them: lists and truth values instead of cells."""

from __future__ import annotations

from collections.abc import Mapping

from finetune.prediction.predictions import Predictions
from finetune.spec.labels import SEPARATOR
from finetune.tasks.multiclass import MULTICLASS

Json = str | bool | float | int | None | list[str] | dict[str, float]
JsonAnswer = Mapping[str, Json]


def json_answers(predictions: Predictions) -> list[JsonAnswer]:
    """One an image: ``prediction``, ``confidence``, ``probabilities``, and what else is known.

    Of several labels an image ``prediction`` is a list. Of numbers it is a number, with ``lower``
    and ``upper`` where intervals are calibrated, and no probability. ``disagreement`` is there
    where several members answer, ``rejected``, ``prediction_set``, ``strangeness`` and ``unknown``
    where there are such rules; the numbers are those that ``finetune predict`` writes.
    """
    probabilities = predictions.probabilities.tolist()
    return [
        _answer(predictions, index, row, values)
        for index, (row, values) in enumerate(zip(predictions.rows(), probabilities, strict=True))
    ]


def _answer(
    predictions: Predictions, index: int, row: Mapping[str, Json], values: list[float]
) -> JsonAnswer:
    names, task = predictions.class_names, predictions.task
    if task.has_choices:
        prediction = row["prediction"]
        if task != MULTICLASS:
            prediction = str(prediction).split(SEPARATOR) if prediction else []
        answer = {"prediction": prediction, "confidence": row["confidence"]}
    else:
        answer = {name: row[name] for name in ("prediction", "lower", "upper") if name in row}
    if "disagreement" in row:
        answer["disagreement"] = row["disagreement"]
    if "rejected" in row:
        answer["rejected"] = row["rejected"] == "true"
    if predictions.prediction_sets is not None:
        members = predictions.prediction_sets[index].tolist()
        answer["prediction_set"] = [n for n, has in zip(names, members, strict=True) if has]
    if "unknown" in row:
        answer |= {"strangeness": row["strangeness"], "unknown": row["unknown"] == "true"}
    shares = {"probabilities": dict(zip(names, values, strict=True))} if task.has_choices else {}
    return answer | shares
