"""Several labels an image: figures against scikit-learn, intervals over groups, comparison."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from finetune.errors import DataError, UsageError
from finetune.evaluation.comparison import compare_all
from finetune.evaluation.intervals import resampled_counts
from finetune.evaluation.judge import judge, numbered, subset, with_names
from finetune.evaluation.label_evaluation import LabelEvaluation, evaluate_labels
from finetune.reporting.csv_files import write_predictions
from finetune.reporting.drawings import drawings_of
from finetune.reporting.page import PageSection, render_page
from finetune.reporting.report import ReportDetails
from finetune.reporting.sources import read_evaluation
from finetune.reporting.triage import rank_suspects
from finetune.tasks.label_scores import weighted_scores
from finetune.tasks.multilabel import MULTILABEL

NAMES = ("red", "round", "rare", "<b>small")


def answers(images: int = 120, seed: int = 0, noise: float = 1.0) -> LabelEvaluation:
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 4)) < [0.5, 0.3, 0.04, 0.2]).astype(float)
    outputs = 2 * targets - 1 + noise * rng.normal(size=targets.shape)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    paths = [f"{i}.png" for i in range(images)]
    return evaluate_labels(targets, outputs, NAMES, paths, thresholds=[0.4, 0.5, 0.2, 0.6])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_weighted_figures_are_those_of_scikit_learn(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    outputs = rng.integers(-3, 4, (images, 2)) / 2  # with ties
    targets = rng.integers(0, 2, (images, 2)).astype(float)
    targets[:2] = [[0, 1], [1, 0]]
    weights = rng.integers(0, 4, (1, images)).astype(float)
    weights[0, :2] = 1
    found = weighted_scores(outputs, targets, np.array([0.2, -0.3]), weights)[0]
    for label, offset in enumerate((0.2, -0.3)):
        truth, score, named = targets[:, label], outputs[:, label], outputs[:, label] > offset
        given = {"sample_weight": weights[0]}
        defined = {"zero_division": np.nan, **given}
        expected = [
            metrics.average_precision_score(truth, score, **given),
            metrics.roc_auc_score(truth, score, **given),
            metrics.f1_score(truth, named, zero_division=0.0, **given),
            metrics.precision_score(truth, named, **defined),
            metrics.recall_score(truth, named, **defined),
        ]
        np.testing.assert_allclose(found[label], expected, atol=1e-12)


def test_a_label_without_images_is_undefined_and_left_out_of_means() -> None:
    targets = np.array([[1.0, 0], [0, 0], [1, np.nan]])
    evaluation = evaluate_labels(targets, [[2.0, 1], [-1, -1], [1, 3]], ["a", "never"])
    scores = evaluation.per_label[1]
    assert (scores.support, scores.known) == (0, 2)
    assert np.isnan([scores.ap, scores.auroc, scores.f1, scores.recall]).all()
    assert evaluation.figures["map"] == 1
    assert evaluation.label_interval(1, "ap") is None
    assert "–" in render_page("t", [PageSection("t", evaluation)])


def test_intervals_hold_the_figures_and_groups_widen_them() -> None:
    alone = answers()
    for name, (low, high) in alone.intervals.items():
        assert low <= alone.figures[name] <= high, name
    grouped = judge(
        MULTILABEL,
        np.repeat(alone.targets, 4, axis=0),
        np.repeat(alone.outputs, 4, axis=0),
        NAMES,
        [str(i) for i in range(480)],
        groups=np.repeat(np.arange(120), 4),
    )
    assert isinstance(grouped, LabelEvaluation)
    # Four copies of each image know no more than one.
    assert grouped.intervals["map"] == pytest.approx(alone.intervals["map"], abs=0.02)
    single = evaluate_labels(grouped.targets, grouped.outputs, NAMES)
    width = np.diff(single.intervals["map"])
    assert width < 0.65 * np.diff(grouped.intervals["map"])


def test_groups_are_drawn_whole() -> None:
    groups = np.array([5, 5, 2, 9, 9, 9])
    counts = resampled_counts(groups, 6, resamples=50)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 3] == counts[:, 5]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert numbered([None, "a", "a", None]).tolist() == [0, 1, 1, 2]
    assert numbered([None, None]) is None


def test_two_sets_of_answers_are_compared_on_the_same_images_whatever_their_order() -> None:
    good, poor = answers(), answers(noise=3.0)
    assert good.targets.shape == poor.targets.shape
    poor = evaluate_labels(good.targets, poor.outputs, NAMES, good.paths)
    turned = with_names(subset(good, list(reversed(range(120)))), NAMES[::-1])
    board = compare_all({"poor": poor, "good": good, "turned": turned})
    assert next(reversed(board.evaluations)) == "poor"
    assert board.as_good_as_the_best == {"good", "turned"}
    pair = next(p for p in board.pairs if {p.first, p.second} == {"good", "poor"})
    assert pair.is_real()
    assert pair.verdict().startswith("good is better than poor by ")
    assert "points of mAP [" in pair.verdict()
    same = next(p for p in board.pairs if "poor" not in (p.first, p.second))
    assert (same.difference, same.p_value) == (0, 1)
    grouped = judge(
        MULTILABEL, poor.targets, poor.outputs, NAMES, poor.paths, groups=np.arange(120) // 3
    )
    assert good.against(grouped).interval == pytest.approx(
        tuple(-end for end in reversed(grouped.against(good).interval))  # type: ignore[arg-type]
    )
    here = judge(MULTILABEL, good.targets, good.outputs, NAMES, good.paths, chosen_here=True)
    assert all(each.chosen_here for each in (subset(here, [0, 1]), with_names(here, NAMES[::-1])))
    other = evaluate_labels(1 - good.targets, good.outputs, NAMES, good.paths)
    with pytest.raises(UsageError, match=r"one label for 0\.png"):
        compare_all({"a": good, "b": other})


def test_chance_alone_is_rarely_called_real() -> None:
    called = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        targets = (rng.random((60, 3)) < 0.4).astype(float)
        sides = [
            evaluate_labels(targets, 2 * targets + 2 * rng.normal(size=targets.shape), NAMES[:3])
            for _ in range(2)
        ]
        called.append(sides[0].against(sides[1]).p_value < 0.05)
    assert np.mean(called) <= 0.12  # 5 %, and what 60 draws add to it


def test_answers_survive_the_table(tmp_path: Path) -> None:
    evaluation = answers()
    outputs = evaluation.outputs.copy()
    outputs[0] = [30, -300, 12, 0]
    evaluation = evaluate_labels(
        evaluation.targets,
        outputs,
        NAMES,
        evaluation.paths,
        thresholds=evaluation.thresholds,
        groups=np.arange(120) // 2,
    )
    for ending in ("csv", "jsonl"):
        write_predictions(tmp_path / f"a.{ending}", evaluation)
        again = read_evaluation(tmp_path / f"a.{ending}")
        assert isinstance(again, LabelEvaluation)
        np.testing.assert_array_equal(again.targets, evaluation.targets)
        np.testing.assert_allclose(again.outputs, outputs, rtol=1e-2)
        assert again.figures == pytest.approx(evaluation.figures, rel=1e-6)
        assert again.intervals["map"] == pytest.approx(evaluation.intervals["map"])
        assert again.thresholds == pytest.approx(evaluation.thresholds)


def test_an_empty_group_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{i},red,{'g' if i < 3 else ''},0.6,0.4,0.5,0.5" for i in range(8)]
    path.write_text("\n".join(["path,label,group,p:red,p:round,t:red,t:round", *rows]) + "\n")
    found = read_evaluation(path).groups
    assert found is not None
    assert found.tolist() == [0, 0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("x,red|blue,0.5,0.5,0.1,0.1\n", "found 'blue'"),
        ("x,?,0.5,0.5,0.1,0.1\n", "expected labels to judge"),
        ("x,red,0.5,0.5,0.1,1.7\n", "a probability in every column"),
        ("x,red,0.5,0.5,0.1,0.2\ny,red,0.5,0.5,0.1,0.3\n", "one threshold above 0"),
    ],
)
def test_a_table_that_is_not_as_it_should_be_is_refused(
    tmp_path: Path, rows: str, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("path,label,p:red,p:round,t:red,t:round\n" + rows)
    with pytest.raises(DataError, match=message):
        read_evaluation(path)


def test_errors_and_suspects_say_which_label_is_wrong() -> None:
    evaluation = evaluate_labels(
        [[1, 0], [1, 1], [0, 1], [0, 0]], [[4.0, -4], [3, -5], [6, 2], [-3, -3]], ["a", "b"]
    )
    assert evaluation.errors().tolist() == [2, 1]
    first = evaluation.shown(2)
    assert (first.label, first.answer, first.remark) == ("b", "a|b", "not there: a")
    assert first.sure == pytest.approx(1 / (1 + np.exp(-6)))
    assert [part.name for part in evaluation.shown(1).of_label] == ["b"]
    assert not evaluation.shown(0).wrong
    suspects = rank_suspects(evaluation)
    assert len(suspects) == 8
    assert {(s.path, s.label, s.suggested) for s in suspects[:2]} == {
        ("2", "not a", "a"),
        ("1", "b", "not b"),
    }


def test_a_page_names_every_label_and_draws_every_figure() -> None:
    evaluation = answers()
    details = ReportDetails(class_counts={"train": {"red": 3}, "val": {"round": 1}})
    drawings = list(drawings_of(evaluation, details))
    assert {"per_label", "most_missed", "co_occurrence"} <= {each.name for each in drawings}
    for each in drawings:
        for theme in ("light", "dark"):
            assert each.draw(theme=theme).axes
    text = render_page("t", [PageSection("t", evaluation)])
    assert "&lt;b&gt;small" in text
    assert "<b>small" not in text
    for word in ("mean average precision", "wrongly named", "missed", "threshold"):
        assert word in text
    assert "rare" in evaluation.notes[-1]


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="a target for each"):
        evaluate_labels(np.ones((2, 2)), np.ones((3, 2)), ["a", "b"])
    with pytest.raises(UsageError, match="finite logits"):
        evaluate_labels(np.ones((1, 2)), [[np.inf, 0]], ["a", "b"])
