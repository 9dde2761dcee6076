"""One image that carries a figure is named; a spread-out loss, or few images, say nothing."""

import json

import numpy as np
import pytest
import torch

from finetune.evaluation.evaluate import evaluate_logits
from finetune.evaluation.scores import dominant_image
from finetune.reporting.page import PageSection, render_page
from finetune.tasks.multiclass import MULTICLASS


def test_the_image_that_carries_the_likelihood_is_named() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 400)
    logits[7] = torch.tensor([-1293.0, 1300.0])
    labels, paths = torch.zeros(400, dtype=torch.long), [f"{i}.jpg" for i in range(400)]
    evaluation = evaluate_logits(labels, logits, ["a", "b"], paths)
    dominant = evaluation.dominant
    assert dominant is not None
    assert dominant == dominant_image(MULTICLASS.losses(logits, labels).numpy(), paths)
    assert (dominant.path, dominant.nats) == ("7.jpg", pytest.approx(2593))
    assert dominant.share == pytest.approx(2593 / (400 * evaluation.nll))
    assert str(dominant) == "one image of 2,593.0 nats carries 98 % of the NLL: 7.jpg"
    assert json.loads(json.dumps(evaluation.to_dict()))["dominant_image"]["path"] == "7.jpg"
    page = render_page("title", [PageSection("title", evaluation)])
    assert "one image of 2,593.0 nats carries 98 % of the NLL: 7.jpg" in page


def test_nothing_is_said_where_nothing_stands_out() -> None:
    assert dominant_image(np.ones(50), ["x"] * 50) is None
    assert dominant_image(np.zeros(50), ["x"] * 50) is None
    assert dominant_image(np.array([0.0, 9.0]), ["x", "y"]) is None


@pytest.mark.parametrize(
    ("count", "worst", "named"), [(10, 9.1, True), (10, 8.9, False), (9, 99.0, False)]
)
def test_it_is_named_above_half_of_all_and_from_ten_images_on(
    count: int, worst: float, named: bool
) -> None:
    losses = np.array([*np.ones(count - 1), worst])
    assert (dominant_image(losses, ["x"] * count) is not None) == named
