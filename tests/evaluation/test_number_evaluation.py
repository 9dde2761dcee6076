"""A number an image: intervals over groups, the range, comparison, tables and pages."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from finetune.errors import DataError, UsageError
from finetune.evaluation.comparison import compare_all
from finetune.evaluation.judge import judge, subset, with_paths
from finetune.evaluation.judgement import readable
from finetune.evaluation.number_evaluation import NumberEvaluation, evaluate_numbers
from finetune.reporting.answer import answer_of
from finetune.reporting.csv_files import write_predictions
from finetune.reporting.drawings import NAMES, drawings_of
from finetune.reporting.page import PageSection, render_page
from finetune.reporting.report import ReportDetails, write_report
from finetune.reporting.sources import read_evaluation
from finetune.tables.reading import read_table
from finetune.tasks.regression import REGRESSION


def answers(
    images: int = 120, noise: float = 5.0, seed: int = 1, **more: object
) -> NumberEvaluation:
    rng = np.random.default_rng(0)
    truth = rng.normal(40, 12, (images, 1))
    given = truth + noise * np.random.default_rng(seed).normal(size=truth.shape)
    paths = [f"{i}.png" for i in range(images)]
    return evaluate_numbers(truth, given, ["age"], paths, **more)  # type: ignore[arg-type]


def test_intervals_hold_the_figures_and_groups_widen_them() -> None:
    alone = answers(60)
    for name, (low, high) in alone.intervals.items():
        assert low < alone.figures[name] < high, name
    often = [np.tile(each, (4, 1)) for each in (alone.targets, alone.outputs)]
    grouped = evaluate_numbers(*often, groups=np.tile(np.arange(60), 4))
    # Each image four times says no more than once.
    assert grouped.intervals["mae"] == pytest.approx(alone.intervals["mae"], rel=0.05)
    single = np.diff(evaluate_numbers(*often).intervals["mae"])
    assert single < 0.7 * np.diff(grouped.intervals["mae"])


def test_the_interval_of_the_mae_is_scipys() -> None:
    errors = np.random.default_rng(0).standard_t(3, size=(80, 1))
    found = evaluate_numbers(np.zeros((80, 1)), errors).intervals["mae"]
    drawn = bootstrap((np.abs(errors[:, 0]),), np.mean, method="percentile", random_state=0)
    assert found == pytest.approx(tuple(drawn.confidence_interval), rel=0.05)


def test_the_range_tells_where_answers_are_drawn_to_the_middle() -> None:
    truth = np.linspace(0, 100, 101)[:, None]
    evaluation = evaluate_numbers(truth, 50 + 0.5 * (truth - 50), half_width=19.75)
    assert len(evaluation.ranges) == 10
    assert sum(row["support"] for row in evaluation.ranges) == 101
    biases = [row["bias"] for row in evaluation.ranges]
    assert biases == sorted(biases, reverse=True)
    assert biases[0] == pytest.approx(22.5)
    assert [row["inside"] for row in evaluation.ranges][4:6] == [1, 1]
    assert evaluation.ranges[0]["inside"] == 0
    assert evaluation.to_dict()["inside_interval"] == pytest.approx(79 / 101)


def test_paired_differences_find_what_two_intervals_do_not() -> None:
    hard = np.random.default_rng(1).exponential(10, (200, 1))
    truth = np.zeros((200, 1))
    better, worse = (evaluate_numbers(truth, hard + shift) for shift in (0, 0.5))
    assert better.intervals["mae"][1] > worse.intervals["mae"][0]
    board = compare_all({"worse": worse, "better": better})
    assert list(board.evaluations) == ["better", "worse"]
    (pair,) = board.pairs
    assert pair.is_real()
    assert (pair.first_only, pair.second_only) == (200, 0)
    assert pair.difference == pytest.approx(-0.5, abs=1e-6)
    assert pair.verdict().startswith("better is better than worse by 0.5 of MAE [0.5, 0.5]")
    same = compare_all({"a": better, "b": with_paths(better, better.paths)}).pairs[0]
    assert (same.difference, same.p_value) == (0, 1)
    assert "not distinguishable" in same.verdict()


def test_the_difference_is_that_of_the_groups_whichever_knows_of_them() -> None:
    one, other = answers(), answers(noise=6, seed=3)
    grouped = answers(noise=6, seed=3, groups=np.arange(120) // 6)
    low, high = one.against(grouped).interval
    assert grouped.against(one).interval == pytest.approx((-high, -low))
    assert (low, high) != one.against(other).interval


def test_chance_alone_is_rarely_called_real() -> None:
    rng = np.random.default_rng(0)
    called = []
    for _ in range(200):
        truth, *given = (rng.normal(size=(40, 1)) for _ in range(3))
        one, other = (evaluate_numbers(truth, each) for each in given)
        called.append(one.against(other).p_value < 0.05)
    assert np.mean(called) <= 0.10


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("half_width", [None, 7.25])
def test_answers_survive_the_table(tmp_path: Path, ending: str, half_width: float | None) -> None:
    groups = np.arange(120) // 2
    evaluation = answers(half_width=half_width, groups=groups)
    write_predictions(tmp_path / f"t.{ending}", evaluation)
    again = read_evaluation(tmp_path / f"t.{ending}")
    assert again.task == REGRESSION
    assert again.half_width == (None if half_width is None else pytest.approx(7.25, rel=1e-6))
    assert np.array_equal(again.targets, evaluation.targets)
    np.testing.assert_allclose(again.outputs, evaluation.outputs, rtol=1e-8)
    assert np.array_equal(again.groups, groups)  # type: ignore[arg-type]
    assert [again.shown(i).label for i in range(120)] == [
        evaluation.shown(i).label for i in range(120)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,prediction\na,1,cat\n", "line 2: expected a number such as 31.5 in column"),
        ("path,label,prediction\na,1,nan\n", "'prediction', found 'nan'"),
        ('path,label,prediction\na,"1,5",2\n', "'label', found '1,5'"),
        ("path,label,prediction\na,1,2\na,1,2\n", "each image once"),
        ("path,prediction,lower,upper\na,1,0,2\nb,1,0,9\n", "intervals of one width"),
        ("path,prediction,prediction\na,1,2\n", "each column once"),
    ],
)
def test_a_table_that_is_wrong_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.csv")


def test_images_without_a_number_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,prediction\na,,2\nb,3,2.5\n")
    assert read_evaluation(tmp_path / "t.csv").paths == ("b",)
    (tmp_path / "t.csv").write_text("path,prediction\na,2\n")
    with pytest.raises(DataError, match="expected labels to judge"):
        read_evaluation(tmp_path / "t.csv")


def test_parts_joins_and_folds_keep_what_is_known() -> None:
    evaluation = answers(half_width=4.0, groups=np.arange(120) // 3)
    part = subset(evaluation, [5, 3])
    assert (part.half_width, part.paths) == (4.0, ("5.png", "3.png"))
    assert part.groups is not None
    assert part.groups.tolist() == [1, 1]
    folds = judge(
        REGRESSION,
        evaluation.targets,
        evaluation.outputs,
        ["age"],
        evaluation.paths,
        folds=np.arange(120) % 3,
    )
    told = folds.to_dict()["folds"]
    assert told["mean"] == pytest.approx(evaluation.figures["mae"])
    name, value = folds.scores[-1].name, folds.scores[-1].shown
    assert name.startswith("mean of 3 folds, ± 0.")
    assert value == readable(told["mean"], "amount")


def test_what_cannot_be_judged_is_refused() -> None:
    ones = np.ones((3, 1))
    with pytest.raises(UsageError, match="a true number for each of 2 answers"):
        evaluate_numbers(ones, np.ones((2, 1)))
    with pytest.raises(UsageError, match="finite numbers"):
        evaluate_numbers(ones, ones * np.nan)
    with pytest.raises(UsageError, match="a true number"):
        evaluate_numbers(np.ones((0, 1)), np.ones((0, 1)))


def test_amounts_are_readable_at_any_size() -> None:
    wanted = {0.000123456: "0.0001235", 3.14159: "3.142", 9999.4: "9999", 123456.7: "123,457"}
    assert {value: readable(value, "amount") for value in wanted} == wanted


@pytest.mark.parametrize("half_width", [None, 3.0])
def test_a_report_shows_the_largest_errors_and_the_figures(
    tmp_path: Path, half_width: float | None
) -> None:
    evaluation = answers(half_width=half_width)
    page = write_report(tmp_path / "report", evaluation, ReportDetails())
    drawn = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"predicted", "ranges", "residuals"} <= drawn <= set(NAMES)
    assert (tmp_path / "report" / "per_range.csv").is_file()
    assert (tmp_path / "report" / "suspects.csv").read_text().count("\n") == 1
    worst = evaluation.errors()
    assert len(worst) == 24
    assert evaluation.losses[worst[0]] == evaluation.losses.max()
    text = page.read_text()
    assert f"{worst[0]}.png" in text
    assert evaluation.shown(int(worst[0])).remark in text
    assert "answers, those furthest off first" in text
    assert "<form" not in text  # errors have a size and no kind
    assert ("inside their interval" in text) == (half_width is not None)
    assert ("--conformal 0.1" in text) == (half_width is None)
    labels = {
        label
        for drawing in drawings_of(evaluation, ReportDetails())
        for label in drawing.draw(theme="dark").axes[0].get_legend_handles_labels()[1]
    }
    assert ("outside" in labels) == (half_width is not None)


def test_words_follow_from_the_figures() -> None:
    truth = np.linspace(0, 100, 101)[:, None]
    noise = np.random.default_rng(0).normal(size=truth.shape)

    def told(given: np.ndarray, half_width: float | None = None) -> str:
        evaluation = evaluate_numbers(truth, given, ["age"], half_width=half_width)
        return str(answer_of(evaluation, ReportDetails())._asdict())

    even = told(truth + noise, half_width=2.0)
    assert re.search(r"Off by 0\.\d+ on average \[.*\] on 101 images \(age\)", even)
    assert "% of the true numbers lie within 2 of the answer" in even
    assert "no part of the range stands out" in even
    drawn = told(50 + 0.5 * (truth - 50) + noise)
    assert "Small numbers come out too high" in drawn
    assert "--conformal 0.1" in drawn
    assert "Furthest off from 91 to 100" in told(truth + noise * (1 + 9 * (truth > 89)))
    assert "their mean, would be as good" in told(100 - truth)


def test_one_image_and_equal_numbers_have_a_page() -> None:
    for count in (1, 7):
        same = np.full((count, 1), 3.0)
        evaluation = evaluate_numbers(same, same)
        assert "3 too" not in render_page("t", [PageSection("t", evaluation)])
        for drawing in drawings_of(evaluation, ReportDetails()):
            drawing.draw(theme="light")
