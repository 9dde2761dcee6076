import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from finetune.errors import TrainingError
from finetune.tasks import categorical
from finetune.training import penalty_search, probe_rows
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.logistic_regression import logistic_problem, near_enough, solve_logistic
from finetune.training.penalty_search import stratified_parts


def blobs(count, width, num_classes, seed=0, spread=0.5):
    """Features with unequal scales and offsets, as a backbone's are."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centres = generator.normal(size=(num_classes, width)) * spread
    scales = 10 ** generator.uniform(-1, 1, size=width)
    features = (centres[labels] + generator.normal(size=(count, width))) * scales + 3 * scales
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def spreads(features):
    """Each feature's spread mixed in equal parts with the mean one."""
    own = features.double().numpy().std(axis=0)
    return np.sqrt((own**2 + own.mean() ** 2) / 2)


def standardised(features):
    rows = features.double().numpy()
    return (rows - rows.mean(axis=0)) / spreads(features)


def scikit_logits(features, labels, l2, sample_weights=None):
    """scikit-learn's optimum on standardised features, as logits centred over the classes."""
    rows = standardised(features)
    weights = np.ones(len(rows)) if sample_weights is None else sample_weights.numpy()
    weights = weights / weights.mean()
    two = int(labels.max()) == 1
    # With two classes scikit-learn penalises the difference w1 - w0, we both vectors.
    model = LogisticRegression(C=(2 if two else 1) / l2, tol=1e-10, max_iter=20000)
    model.fit(rows, labels.numpy(), sample_weight=weights)
    scores = model.decision_function(rows)
    logits = np.stack([-scores / 2, scores / 2], axis=1) if two else scores
    return torch.from_numpy(logits - logits.mean(axis=1, keepdims=True)), model


def centred(logits):
    return logits - logits.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("count", "width", "num_classes"), [(200, 20, 2), (60, 150, 3), (300, 40, 7), (90, 90, 4)]
)
@pytest.mark.parametrize("l2", [0.1, 3.0, 300.0])
def test_the_fit_is_scikit_learns(count, width, num_classes, l2):
    features, labels = blobs(count, width, num_classes)
    probe = fit_probe(features, labels, num_classes, l2=l2)
    wanted, _ = scikit_logits(features, labels, l2)
    found = centred(probe.logits(features))
    assert (found - wanted).abs().max() < 1e-4 * max(1.0, wanted.abs().max())
    assert (found.softmax(1) - wanted.softmax(1)).abs().max() < 1e-4


def test_coefficients_are_scikit_learns_folded_back():
    features, labels = blobs(300, 30, 5)
    probe = fit_probe(features, labels, 5, l2=2.0)
    _, model = scikit_logits(features, labels, 2.0)
    found = probe.weight * torch.from_numpy(spreads(features))
    torch.testing.assert_close(found, torch.from_numpy(model.coef_), atol=1e-4, rtol=1e-4)


def test_sample_weights_are_scikit_learns():
    features, labels = blobs(120, 15, 3)
    weights = torch.from_numpy(np.random.default_rng(1).uniform(0, 3, size=120))
    probe = fit_probe(features, labels, 3, l2=1.0, sample_weights=weights)
    wanted, _ = scikit_logits(features, labels, 1.0, weights)
    assert (centred(probe.logits(features)) - wanted).abs().max() < 1e-4
    again = fit_probe(features, labels, 3, l2=1.0, sample_weights=10 * weights)
    torch.testing.assert_close(again.weight, probe.weight)


def test_a_doubled_row_is_a_row_of_weight_two():
    features, labels = blobs(40, 6, 2)
    problem = logistic_problem(features, labels, torch.tensor([2.0] + [1.0] * 39), 2)
    doubled = logistic_problem(
        torch.cat([features, features[:1]]), torch.cat([labels, labels[:1]]), torch.ones(41), 2
    )
    torch.testing.assert_close(solve_logistic(problem, 1.0), solve_logistic(doubled, 1.0))


@pytest.mark.parametrize("l2", [1e-3, 1.0, 1e4])
def test_the_gradient_vanishes_and_the_start_does_not_matter(l2):
    features, labels = blobs(80, 12, 4)
    features = (features - features.mean(0)) / features.std(0)
    problem = logistic_problem(features, labels, torch.ones(80), 4)
    found = solve_logistic(problem, l2)
    coefficients = found.clone().requires_grad_(True)
    loss = (
        torch.nn.functional.cross_entropy(problem.rows @ coefficients.T, labels, reduction="sum")
        + 0.5 * l2 * (coefficients[:, :-1] ** 2).sum()
    )
    (gradient,) = torch.autograd.grad(loss, coefficients)
    assert gradient.abs().max() < 1e-6
    start = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(
        solve_logistic(problem, l2, start=start), found, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("num_classes", [3, 70])
@pytest.mark.parametrize("l2", [1e-1, 1.0, 1e1, 1e3])
def test_what_is_near_enough_is_within_a_ten_thousandth_of_a_nat_an_image(l2, num_classes):
    features, labels = blobs(210, 12, num_classes)
    rows = torch.from_numpy(standardised(features))
    problem = logistic_problem(rows, labels % num_classes, torch.ones(210), num_classes)

    def objective(coefficients):
        logits = problem.rows @ coefficients.T
        nll = torch.nn.functional.cross_entropy(logits, problem.labels, reduction="sum")
        return float(nll + 0.5 * l2 * coefficients[:, :-1].square().sum()) / len(rows)

    rough = solve_logistic(problem, l2, tolerance=near_enough(l2))
    fine = solve_logistic(problem, l2, tolerance=1e-10)
    assert objective(fine) <= objective(rough) + 1e-9
    assert objective(rough) <= objective(fine) + 1e-4


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rescaling_all_features_changes_nothing(scale):
    features, labels = blobs(100, 10, 3)
    scaled = scale * features.double()
    first = fit_probe(features.double(), labels, 3).logits(features)
    second = fit_probe(scaled, labels, 3).logits(scaled)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


KINDS = ("usual", "large", "constant", "hardly varies", "one in all", "repeat")


def odd_features(kinds, count, seed):
    """``(N, len(kinds))``: columns as networks make them, after a first one that varies."""
    generator = np.random.default_rng(seed)
    columns = [generator.normal(size=count)]
    for kind in kinds:
        usual = np.maximum(generator.normal(size=count), 0)
        columns.append(
            {
                "usual": usual,
                "large": 1e3 * usual,
                "constant": np.full(count, 3.0),
                "hardly varies": 3.0 + 1e-6 * usual,
                "one in all": np.eye(count)[generator.integers(count)],
                "repeat": columns[-1],
            }[kind]
        )
    return torch.from_numpy(np.stack(columns, axis=1))


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12),
    count=st.integers(6, 60),
    num_classes=st.integers(2, 5),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    l2=st.sampled_from([1e-2, 1.0, 1e2]),
    seed=st.integers(0, 2**16),
)
def test_one_feature_moves_an_answer_by_a_bounded_amount(
    kinds, count, num_classes, scale, l2, seed
):
    features = scale * odd_features(kinds, count, seed)
    labels = torch.arange(count) % num_classes
    probe = fit_probe(features, labels, num_classes, l2=l2)
    mean_spread = features.std(dim=0, correction=0).mean()
    widest = features.max() - features.min()  # what a network that made these may well make
    of_class = torch.bincount(labels)
    for index in range(features.shape[1]):
        moved = features.clone()
        moved[:, index] += widest
        change = (probe.logits(moved) - probe.logits(features)).abs()
        t = widest / mean_spread
        varied = (features[:, index].max() - features[:, index].min()) / mean_spread
        assert (change <= 1e-6 + 2 * t * (count * np.log(num_classes) / l2) ** 0.5).all()
        assert (change <= 1e-6 + 2 * t * varied * of_class / l2).all()


def test_a_feature_that_hardly_varied_counts_for_nothing():
    """Divided by its own spread, it had a weight of 10,000 and more."""
    features, labels = blobs(200, 30, 10, spread=1.0)
    typical = features.std(dim=0).mean()
    features[:, 3] = 0.5 * typical
    features[labels == 4, 3] *= 1 + 1e-5
    probe = fit_probe(features, labels, 10)
    moved = features.clone()
    moved[:, 3] += 3 * typical
    assert (probe.logits(moved) - probe.logits(features)).abs().max() < 0.1


def test_cross_validation_prefers_a_strong_penalty_for_noise_and_a_weak_one_for_signal():
    noise = torch.randn(120, 200, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(120) % 3
    of_noise = fit_probe(noise, labels, 3)
    features, labels = blobs(600, 10, 3, spread=2.0)
    of_signal = fit_probe(features, labels, 3)
    assert of_noise.l2 >= 1000 > 10 >= of_signal.l2
    assert min(of_signal.held_out_nll.values()) < 0.1 < 1.0 < min(of_noise.held_out_nll.values())


def test_held_out_nll_is_that_of_a_plain_cross_validation():
    features, labels = blobs(150, 8, 3)
    probe = fit_probe(features, labels, 3, l2=[1.0, 10.0], seed=0)
    folds = stratified_parts(labels, torch.arange(150), 5, 0)
    # Standardisation looks at features only, so it is done once on all of them.
    rows = torch.from_numpy(standardised(features))
    for l2, found in probe.held_out_nll.items():
        losses = []
        for fold in range(5):
            train, out = folds != fold, folds == fold
            model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10000)
            model.fit(rows[train].numpy(), labels[train].numpy())
            probabilities = model.predict_proba(rows[out].numpy())
            losses.append(-np.log(probabilities[np.arange(int(out.sum())), labels[out].numpy()]))
        assert found == pytest.approx(np.concatenate(losses).mean(), rel=1e-3)


def test_held_out_answers_are_those_that_the_penalty_was_chosen_by():
    features, labels = blobs(151, 8, 3)
    labels[150] = 3  # the only one of its class: never left out
    probe = fit_probe(features, labels, 4, held_out=True)
    answers = probe.held_out_logits
    assert answers is not None
    assert answers[150].isnan().all()
    losses = categorical.losses(answers[:150], labels[:150])
    assert float(losses.mean()) == pytest.approx(probe.held_out_nll[probe.l2], rel=1e-9)
    assert fit_probe(features, labels, 4).held_out_logits is None


def test_views_of_one_image_are_not_split_between_folds():
    features, labels = blobs(40, 60, 2, spread=0.0)
    groups = torch.arange(40)
    noise = torch.randn(3, 40, 60, generator=torch.Generator().manual_seed(0)) * 1e-3
    views = (features + noise * features.std(0)).flatten(0, 1)
    together = fit_probe(views, labels.repeat(3), 2, groups=groups.repeat(3))
    apart = fit_probe(views, labels.repeat(3), 2)
    # There is nothing to learn; only copies on both sides of a split can look like knowledge.
    assert min(apart.held_out_nll.values()) < 0.4
    assert min(together.held_out_nll.values()) > 0.6


def test_classes_of_one_group_each_are_told_apart_though_nothing_can_be_held_out():
    features, _ = blobs(4, 60, 2, spread=3.0)
    labels = torch.arange(4)
    views = features.repeat(3, 1) + 0.01 * torch.randn(
        12, 60, generator=torch.Generator().manual_seed(1)
    )
    probe = fit_probe(views, labels.repeat(3), 4, groups=labels.repeat(3), held_out=True)
    sure = probe.logits(features).softmax(1)[labels, labels]
    assert bool((sure > 0.5).all())
    assert probe.held_out_nll == {}
    assert bool(probe.held_out_logits.isnan().all())
    assert fit_probe(views, labels.repeat(3), 4, groups=labels.repeat(3), l2=[1, 100]).l2 == 100


def test_a_class_with_one_image_and_a_class_without():
    features, labels = blobs(61, 10, 2, spread=2.0)
    labels = labels.clone()
    labels[60] = 3
    probe = fit_probe(features, labels, 5)
    probabilities = probe.logits(features).softmax(1)
    assert probe.weight.shape == (5, 10)
    assert bool(probe.weight.isfinite().all())
    assert bool((probabilities[:, [2, 4]] < 0.1).all())
    assert (probabilities.argmax(1) == labels)[:60].double().mean() > 0.95


def test_repeats_give_the_same_fit():
    features, labels = blobs(100, 8, 2)
    first, second = (fit_probe(features, labels, 2, l2=1.0) for _ in range(2))
    torch.testing.assert_close(first.weight, second.weight, rtol=0, atol=0)


def test_constant_features_alone_answer_with_the_shares_of_the_classes():
    labels = torch.tensor([0, 0, 0, 1])
    probe = fit_probe(torch.full((4, 3), 7.0), labels, 2)
    answer = probe.logits(torch.tensor([[1e3, -1e3, 7.0]])).softmax(1)
    torch.testing.assert_close(answer, torch.tensor([[0.75, 0.25]], dtype=torch.float64))


def test_many_rows_choose_the_penalty_on_a_part(monkeypatch):
    features, labels = blobs(1000, 10, 4)
    full = fit_probe(features, labels, 4)
    monkeypatch.setattr(penalty_search, "MAX_IMAGES", 300)
    part = fit_probe(features, labels, 4)
    assert 0.03 <= part.l2 / full.l2 <= 31
    same = fit_probe(features, labels, 4, l2=part.l2)
    torch.testing.assert_close(part.weight, same.weight)


def test_many_classes_of_few_images_are_scikit_learns():
    features, labels = blobs(560, 30, 70, spread=1.0)  # heavy rows in the preconditioner
    probe = fit_probe(features, labels, 70, l2=1.0)
    wanted, _ = scikit_logits(features, labels, 1.0)
    assert (centred(probe.logits(features)) - wanted).abs().max() < 1e-4


def test_much_work_chooses_the_penalty_on_fewer_axes_and_folds(monkeypatch):
    features, labels = blobs(150, 60, 30, spread=0.7)
    whole = fit_probe(features, labels, 30)
    monkeypatch.setattr(penalty_search, "MAX_WORK", 1.0)
    cheap = fit_probe(features, labels, 30)
    assert 0.3 <= cheap.l2 / whole.l2 <= 3.5
    for l2 in cheap.held_out_nll.keys() & whole.held_out_nll.keys():
        assert cheap.held_out_nll[l2] == pytest.approx(whole.held_out_nll[l2], rel=0.35)
    assert set(cheap.held_out_nll) <= set(penalty_search.L2_GRID)  # no half decades
    assert not set(whole.held_out_nll) <= set(penalty_search.L2_GRID)
    # The fit itself is the same optimum, wherever it started.
    again = fit_probe(features, labels, 30, l2=cheap.l2)
    torch.testing.assert_close(cheap.weight, again.weight, atol=1e-6, rtol=1e-5)


def test_a_long_fit_says_where_it_is(monkeypatch):
    features, labels = blobs(60, 5, 2)
    lines = []
    fit_probe(features, labels, 2, say=lines.append)
    assert not lines
    monkeypatch.setattr(probe_rows, "QUIET_SECONDS", -1.0)
    probe = fit_probe(features, labels, 2, say=lines.append)
    assert len(lines) == len(probe.held_out_nll) + 1
    assert lines[0].startswith("final layer: penalty 1e+04, held-out NLL ")


def test_mistakes_are_told():
    features, labels = blobs(20, 4, 2)
    with pytest.raises(TrainingError, match="finite"):
        fit_probe(features.clone().fill_(float("nan")), labels, 2)
    with pytest.raises(TrainingError, match="two of 2 classes"):
        fit_probe(features, torch.zeros_like(labels), 2)
    with pytest.raises(ValueError, match="features"):
        fit_probe(features, labels[:5], 2)
    with pytest.raises(ValueError, match="weight"):
        fit_probe(features, labels, 2, sample_weights=-torch.ones(20))


def test_logits_are_those_of_a_linear_layer():
    probe = Probe(torch.randn(3, 5).double(), torch.randn(3).double(), 1.0)
    layer = torch.nn.Linear(5, 3).double()
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        layer.bias.copy_(probe.bias)
    features = torch.randn(4, 5)
    torch.testing.assert_close(probe.logits(features), layer(features.double()))
