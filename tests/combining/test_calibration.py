import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from torch import Tensor

from finetune.combining.calibrated_answer import Calibration
from finetune.combining.calibration import (
    TemperatureFit,
    apply_temperature,
    fit_reject_rule,
    fit_temperature,
)
from finetune.combining.label_scaling import LabelScaling
from finetune.errors import CalibrationError
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.task import Task


def simulated(
    classes: int, temperature: float, seed: int, images: int = 500
) -> tuple[Tensor, Tensor]:
    """Logits that are calibrated once divided by ``temperature``, and labels drawn from that."""
    generator = torch.Generator().manual_seed(seed)
    honest = 2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(honest.softmax(-1), 1, generator=generator)[:, 0]
    return honest * temperature, labels


def nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits / temperature, labels))


@pytest.mark.parametrize("classes", [2, 5, 100, 1000])
@pytest.mark.parametrize("true_temperature", [0.05, 0.3, 1.0, 10.0, 100.0])
def test_reaches_the_optimum_of_an_independent_solver(
    classes: int, true_temperature: float
) -> None:
    logits, labels = simulated(classes, true_temperature, seed=classes, images=300)
    reference = minimize_scalar(
        lambda log_t: nll(logits, labels, np.exp(log_t)),
        bounds=(-7, 7),
        method="bounded",
        options={"xatol": 1e-9},
    )
    found = fit_temperature(logits, labels)
    assert found.temperature > 0
    assert found.nll_after <= reference.fun + 1e-9
    assert found.nll_after == pytest.approx(nll(logits, labels, found.temperature), abs=1e-9)
    assert found.nll_after <= found.nll_before + 1e-12


class LogitsAsFeatures(ClassifierMixin, BaseEstimator):
    """An estimator whose decision function is its input, for scikit-learn's calibration."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "LogitsAsFeatures":
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.classes_[X.argmax(axis=1)]

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return X


@pytest.mark.parametrize("true_temperature", [0.5, 3.0])
def test_equals_scikit_learns_temperature(true_temperature: float) -> None:
    logits, labels = simulated(4, true_temperature, seed=1)
    features, truth = logits.numpy(), labels.numpy()
    reference = CalibratedClassifierCV(
        FrozenEstimator(LogitsAsFeatures().fit(features, truth)), method="temperature"
    ).fit(features, truth)
    found = fit_temperature(logits, labels).temperature
    np.testing.assert_allclose(
        (logits / found).softmax(-1).numpy(), reference.predict_proba(features), atol=1e-4
    )


@given(seed=st.integers(0, 10**6), scale=st.floats(0.2, 5.0))
@settings(max_examples=20, deadline=None)
def test_scaling_logits_scales_the_temperature_and_shifts_do_not_matter(
    seed: int, scale: float
) -> None:
    logits, labels = simulated(4, 2.0, seed, images=200)
    shift = torch.randn(200, 1, generator=torch.Generator().manual_seed(seed)).double()
    plain = fit_temperature(logits, labels).temperature
    moved = fit_temperature(scale * (logits + 10 * shift), labels).temperature
    assert moved == pytest.approx(scale * plain, rel=1e-6)


@given(seed=st.integers(0, 10**6), temperature=st.floats(0.05, 20.0))
@settings(max_examples=30, deadline=None)
def test_order_of_classes_is_kept(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(20, 6, generator=generator)
    calibrated = apply_temperature(logits, temperature)
    assert torch.equal(calibrated.argsort(-1), logits.argsort(-1))


def test_temperature_one_changes_no_bit_and_log_probabilities_are_logits() -> None:
    logits, labels = simulated(3, 2.0, seed=0)
    assert apply_temperature(logits, 1.0) is logits
    scaled = apply_temperature(logits.log_softmax(-1), 2.5).softmax(-1)
    torch.testing.assert_close(scaled, (logits / 2.5).softmax(-1))
    assert fit_temperature(logits.log_softmax(-1), labels).temperature == pytest.approx(
        fit_temperature(logits, labels).temperature
    )


@given(st.integers(0, 1000), st.sampled_from([MULTICLASS, MULTILABEL]))
def test_pooled_logits_come_back_from_calibrated_probabilities(seed: int, task: Task) -> None:
    generator = torch.Generator().manual_seed(seed)
    pooled = 3 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    scaling = LabelScaling((0.5, 1.0, 2.0), (1.0, 0.0, -1.0), 0.1)
    fit = TemperatureFit(temperature=1.6, nll_before=1.0, nll_after=0.9, images=9)
    calibration = Calibration(fit, scaling=scaling if task == MULTILABEL else None)
    answered = task.probabilities(calibration.logits(pooled))
    found = calibration.uncalibrated(task.of_probabilities(answered))
    torch.testing.assert_close(
        task.probabilities(found), task.probabilities(pooled), atol=1e-5, rtol=1e-4
    )


def test_probabilities_of_0_and_1_have_finite_outputs() -> None:
    certain = torch.tensor([[0.0, 1.0]])
    for task in (MULTICLASS, MULTILABEL):
        outputs = task.of_probabilities(certain)
        assert outputs.isfinite().all()
        torch.testing.assert_close(task.probabilities(outputs), certain, atol=1e-6, rtol=0)


def test_answers_that_are_always_right_or_wrong_reach_a_bound_and_warn() -> None:
    labels = torch.arange(60) % 3
    right = torch.nn.functional.one_hot(labels, 3).double()
    with pytest.warns(UserWarning, match="right everywhere"):
        assert fit_temperature(right, labels).temperature == pytest.approx(1e-3)
    with pytest.warns(UserWarning, match="no better than chance"):
        assert fit_temperature(-right, labels).temperature == pytest.approx(1e3)


def test_few_images_that_are_all_right_do_not_call_for_certainty() -> None:
    labels = torch.arange(72) % 3
    confident = torch.nn.functional.one_hot(labels, 3).double() * 5  # 0.987 each
    alone = fit_temperature(confident, labels, prior=0.5)
    assert 0.5 < alone.temperature < 1
    assert alone.nll_after < alone.nll_before
    wider = fit_temperature(confident, labels, prior=1.0)
    assert wider.temperature < alone.temperature


@pytest.mark.parametrize("prior", [0.25, 1.0])
def test_the_prior_counts_on_few_images_and_not_on_many(prior: float) -> None:
    logits, labels = simulated(4, 5.0, seed=2, images=5000)
    best = fit_temperature(logits, labels).temperature
    few = fit_temperature(logits[:60], labels[:60], prior=prior).temperature
    alone = fit_temperature(logits[:60], labels[:60]).temperature
    assert 1 < few < alone
    assert fit_temperature(logits, labels, prior=prior).temperature == pytest.approx(best, rel=0.02)


@given(seed=st.integers(0, 10**6), prior=st.floats(0.1, 2.0), images=st.integers(50, 200))
@settings(max_examples=20, deadline=None)
def test_the_most_probable_temperature_is_that_of_an_independent_search(
    seed: int, prior: float, images: int
) -> None:
    logits, labels = simulated(3, 0.4, seed, images=images)

    def posterior(log_t: np.ndarray) -> np.ndarray:
        losses = [len(labels) * nll(logits, labels, np.exp(value)) for value in log_t]
        return np.array(losses) + log_t**2 / (2 * prior**2)

    grid = np.linspace(-4, 4, 801)
    found = np.log(fit_temperature(logits, labels, prior=prior).temperature)
    assert posterior(np.array([found]))[0] <= posterior(grid).min() + 1e-9


def test_equal_logits_leave_the_temperature_at_one() -> None:
    assert fit_temperature(torch.zeros(60, 3), torch.arange(60) % 3).temperature == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "at least one image"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), "from 0 to 2"),
        (torch.full((2, 3), float("nan")), torch.tensor([0, 1]), "finite"),
    ],
)
def test_data_that_cannot_calibrate_are_refused(
    logits: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        fit_temperature(logits, labels)


@given(seed=st.integers(0, 10**6), risk=st.floats(0.05, 0.4))
@settings(max_examples=30, deadline=None)
def test_reject_rule_covers_as_much_as_the_risk_allows(seed: int, risk: float) -> None:
    logits, labels = simulated(3, 1.0, seed, images=80)
    probabilities = logits.softmax(-1)
    confidence, predicted = probabilities.max(-1)
    wrong = predicted != labels
    risks = {float(c): float(wrong[confidence >= c].double().mean()) for c in confidence}
    reachable = [threshold for threshold, value in risks.items() if value <= risk]
    if not reachable:
        with pytest.raises(CalibrationError, match="the least"):
            fit_reject_rule(confidence, wrong, risk=risk)
        return
    rule = fit_reject_rule(confidence, wrong, risk=risk)
    assert rule.threshold == min(reachable)
    assert rule.risk == pytest.approx(risks[rule.threshold])
    assert rule.coverage == pytest.approx(float((confidence >= rule.threshold).double().mean()))
    assert rule.risk <= rule.risk_bound <= 1


def test_equal_confidences_are_accepted_or_rejected_together() -> None:
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.8])
    wrong = torch.tensor([False, False, False, True, False])
    with pytest.raises(CalibrationError, match=r"is 0\.2"):
        fit_reject_rule(confidence, wrong, risk=0.1)
    rule = fit_reject_rule(confidence, wrong, risk=0.2)
    assert (rule.coverage, rule.risk) == (1.0, 0.2)


def test_risk_bound_is_clopper_and_pearsons() -> None:
    # No error among n: the bound solves (1 - p)^n = 0.05.
    rule = fit_reject_rule(torch.full((30,), 0.9), torch.zeros(30).bool(), risk=0.0)
    assert rule.risk_bound == pytest.approx(1 - 0.05 ** (1 / 30))


def test_impossible_risk_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"\[0, 1\)"):
        fit_reject_rule(torch.tensor([0.9]), torch.tensor([False]), risk=1.0)
