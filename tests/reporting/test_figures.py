"""Figures say what the evaluation says, at 2 and at 200 classes, whatever the names."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from finetune.errors import UsageError
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.result import Evaluation
from finetune.reporting import curves, embedding_map, figures, style

STRANGE = ["ばら", "$x^2$ and $5", "tab\there", "a" * 90, "", "😀", "<b>", "عربى"]
CURVES = {
    "train/loss": [(0, 1.0), (1, 0.5)],
    "val/loss": [(0, 1.1), (1, 0.7)],
    "val/accuracy": [(0, 0.4), (1, 0.8)],
    "lr-AdamW/head": [(0, 1e-3), (1, 1e-4)],
}
OF_EVALUATION = {
    "confusion": figures.confusion_figure,
    "reliability": figures.reliability_figure,
    "coverage": figures.coverage_risk_figure,
    "classes": figures.per_class_figure,
    "board": lambda e, **k: figures.leaderboard_figure({"one": e, "two": e}, **k),
    "balance": lambda e, **k: figures.class_balance_figure(
        {"train": dict.fromkeys(e.class_names, 3), "test": dict.fromkeys(e.class_names, 1)}, **k
    ),
}


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(
        text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))
    )


@pytest.mark.parametrize("n_classes", [2, 8, 200])
@pytest.mark.parametrize("name", OF_EVALUATION)
def test_every_figure_is_drawn_without_a_warning_in_both_themes(
    name: str, n_classes: int, make_evaluation: Callable[..., Evaluation]
) -> None:
    class_names = (STRANGE + [f"class {i}" for i in range(200)])[:n_classes]
    evaluation = make_evaluation(60, class_names)
    images = [
        Image.open(io.BytesIO(style.to_png(OF_EVALUATION[name](evaluation, theme=theme), dpi=50)))
        for theme in ("light", "dark")
    ]
    light, dark = (np.asarray(image.convert("L")) for image in images)
    assert light[0, 0] == 255
    assert dark[0, 0] < 40
    assert min(light.std(), dark.std()) > 5  # and something is on it


def test_confusion_cells_hold_their_numbers() -> None:
    evaluation = evaluate([0, 0, 0, 1], np.eye(2)[[0, 0, 1, 1]], ["a", "b"])
    ax = figures.confusion_figure(evaluation).axes[0]
    written = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts
    }
    assert written == {(0, 0): "2", (0, 1): "1", (1, 1): "1"}


def test_many_classes_list_their_most_frequent_confusion() -> None:
    names = [f"c{i}" for i in range(60)]
    labels = np.r_[np.arange(60), 7, 7, 7]
    predictions = np.r_[np.arange(60), 33, 33, 33]
    evaluation = evaluate(labels, np.eye(60)[predictions], names)
    assert "3× c7 → c33" in figures.confusion_figure(evaluation).axes[0].get_xlabel()


def test_per_class_shows_the_worst_and_marks_few_images() -> None:
    labels = np.repeat([0, 1], [10, 2])
    evaluation = evaluate(labels, np.eye(2)[np.zeros(12, dtype=int)], ["many", "rare"])
    labels_shown = [
        t.get_text() for t in figures.per_class_figure(evaluation).axes[0].get_yticklabels()
    ]
    assert labels_shown == ["rare (2, few)", "many (10)"]


def test_display_names_stay_different_and_drawable() -> None:
    long = ["x" * 50 + "1" + "y" * 50, "x" * 50 + "2" + "y" * 50, "plain"]
    shown = style.display_names(long)
    assert len(set(shown)) == 3
    assert shown[2] == "plain"
    assert all(len(name) < 32 for name in shown)
    assert style.display_names(["a\nb", ""]) == ["a b", "(empty)"]
    private = "\ue123\ue124"  # no font has these
    assert style.display_names([private, private[::-1]]) == ["□□ #0", "□□ #1"]


def test_learning_curves_share_a_panel_by_metric() -> None:
    panels = curves.panels_of(CURVES)
    figure = curves.learning_curves_figure(panels)
    assert [ax.get_ylabel() for ax in figure.axes] == list(panels) == ["loss", "accuracy"]
    assert [len(ax.lines) for ax in figure.axes[:2]] == [2, 1]
    rate = curves.learning_rate_figure(CURVES, theme="dark").axes[0]
    assert rate.get_yscale() == "log"
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [1e-3, 1e-4])
    assert curves.has_learning_rates(CURVES)
    assert not curves.has_learning_rates({"val/loss": [(0, 1)]})
    alone = curves.panel_figure("loss", panels["loss"]).axes[0]
    assert (alone.get_xlabel(), alone.get_ylabel(), len(alone.lines)) == ("epochs", "loss", 2)


def test_epochs_are_counted_through_all_phases(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("phase,epoch,step,lr-1,val/loss\n1,0,2,0.3,0.5\n1,1,5,0.1,\n2,0,2,0.2,0.4\n")
    assert curves.read_curves(path) == {
        "lr-1": [(0, 0.3), (1, 0.1), (2, 0.2)],
        "val/loss": [(1, 0.5), (3, 0.4)],
    }


def test_curves_are_read_from_a_run_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,train/loss,val/loss,lr-AdamW\n"
        ",0,,,0.3\n0,3,1.5,,\n0,3,,nan,\n,6,,,0.1\n1,7,,0.5,\n"
    )
    assert curves.read_curves(path) == {
        "lr-AdamW": [(0, 0.3), (1.5, 0.1)],
        "train/loss": [(1, 1.5)],
        "val/loss": [(2, 0.5)],
    }
    path.write_text("loss\n3\n2\n")
    assert curves.read_curves(path) == {"loss": [(0, 3.0), (1, 2.0)]}
    assert curves.read_curves(tmp_path / "none.csv") == {}


@pytest.mark.parametrize("projection", ["pca", "tsne"])
@pytest.mark.parametrize("n_classes", [2, 60])
def test_the_map_keeps_classes_apart(projection: embedding_map.Projection, n_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % n_classes
    embeddings = rng.normal(size=(120, 16)) + 30 * (labels == 1)[:, None]
    points, _ = embedding_map.project(embeddings, projection)
    centre, other = points[labels == 1].mean(axis=0), points[labels == 0].mean(axis=0)
    inside = np.linalg.norm(points[labels == 1] - centre, axis=1)
    assert inside.mean() < np.linalg.norm(centre - other)
    figure = embedding_map.embedding_figure(
        embeddings, labels, [f"c{i}" for i in range(n_classes)], projection=projection
    )
    style.to_png(figure, dpi=40)


def test_classes_with_one_middle_are_all_named_on_a_map_and_not_across_each_other() -> None:
    """Twelve rings around one middle: every name but the first moves out along its own ring."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.concatenate([(1 + radius) * ring for radius in range(12)])
    names = [f"class {i}" for i in range(12)]
    figure = embedding_map.embedding_figure(points, np.repeat(np.arange(12), 40), names)
    places = {text.get_text(): np.array(text.get_position()) for text in figure.axes[0].texts}
    assert set(places) == set(names)
    extent = np.ptp(points, axis=0)
    for one, other in itertools.combinations(places.values(), 2):
        assert (np.abs(one - other) / extent >= (0.16, 0.035)).any()


def test_a_map_of_two_images_works_and_of_one_is_refused() -> None:
    points, _ = embedding_map.project(np.array([[0.0], [1.0]]), "pca")
    assert points.shape == (2, 2)
    with pytest.raises(UsageError, match="at least two images"):
        embedding_map.project(np.zeros((1, 4)), "pca")
