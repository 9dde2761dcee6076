"""Intervals about numbers hold the truth as often as they say, on any sample however small."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from finetune.combining.calibrated_answer import Calibration, decide, fit_calibration
from finetune.combining.number_intervals import fit_intervals
from finetune.errors import CalibrationError, UsageError
from finetune.tasks.regression import REGRESSION


@pytest.mark.parametrize(("images", "alpha"), [(9, 0.1), (40, 0.1), (60, 0.25)])
def test_the_coverage_is_that_of_the_theory(images: int, alpha: float) -> None:
    """Given the calibration images it is Beta(k, n + 1 - k); its mean is k / (n + 1)."""
    generator = torch.Generator().manual_seed(0)
    # Heavy tails: nothing is assumed of the errors but that they are alike.
    errors = torch.randn(2000, images + 50, generator=generator).double().pow(3).abs()
    held = []
    for row in errors:
        rule = fit_intervals(row[:images], alpha=alpha)
        held.append(float((row[images:] <= rule.half_width).double().mean()))
    rank = int(np.ceil(round((images + 1) * (1 - alpha), 9)))
    wanted = rank / (images + 1)
    assert wanted >= 1 - alpha
    spread = beta(rank, images + 1 - rank).var() + wanted * (1 - wanted) / 50
    assert abs(np.mean(held) - wanted) < 4 * (spread / 2000) ** 0.5


def test_too_few_images_say_how_many_are_needed() -> None:
    assert fit_intervals(torch.arange(9.0), alpha=0.1).half_width == 8
    with pytest.raises(CalibrationError, match=r"at least 9 held-out images .* found 8; hold out"):
        fit_intervals(torch.arange(8.0), alpha=0.1)


def test_an_answer_has_the_interval_of_its_calibration() -> None:
    pooled, truth = torch.zeros(19, 1), torch.arange(19.0).unsqueeze(1)
    calibration = fit_calibration(REGRESSION, pooled, truth, conformal_alpha=0.5)
    assert calibration.interval is not None
    assert calibration.interval.half_width == 9
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    members = torch.stack([pooled - 1, pooled + 1])
    answer = decide(REGRESSION, pooled, members, calibration)
    assert torch.equal(answer.logits, pooled)
    assert answer.half_width == 9
    assert answer.disagreement.tolist() == [1.0] * 19  # in the user's unit
    assert decide(REGRESSION, pooled, members, None).half_width is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "--conformal A alone for the task regression"),
        ({"wanted_precision": 0.9, "conformal_alpha": 0.1}, "--conformal A alone"),
        ({"reject_risk": 0.1, "conformal_alpha": 0.1}, "no --reject-risk for numbers"),
    ],
)
def test_there_is_nothing_else_to_calibrate(rule: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_calibration(REGRESSION, torch.zeros(9, 1), torch.zeros(9, 1), **rule)  # type: ignore[arg-type]
