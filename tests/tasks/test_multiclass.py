"""One class an image, against torch's own functions; what a file may hold as its targets."""

import pytest
import torch
from torch import nn

from finetune.errors import TrainingError
from finetune.tasks import categorical
from finetune.tasks.multiclass import MULTICLASS

LOGITS = 5 * torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 6


def test_losses_are_those_of_torch_for_every_member() -> None:
    found = MULTICLASS.losses(LOGITS, LABELS)
    assert found.dtype == torch.float64
    for member, losses in zip(LOGITS, found, strict=True):
        expected = nn.functional.cross_entropy(member.double(), LABELS, reduction="none")
        torch.testing.assert_close(losses, expected)
    assert MULTICLASS.figures(LOGITS[0], LABELS)["nll"] == pytest.approx(float(found[0].mean()))


def test_answers_are_of_the_likeliest_class_and_of_equals_the_first() -> None:
    torch.testing.assert_close(MULTICLASS.probabilities(LOGITS), LOGITS.softmax(-1))
    torch.testing.assert_close(MULTICLASS.confidence(LOGITS), LOGITS.softmax(-1).amax(-1))
    torch.testing.assert_close(MULTICLASS.log_probabilities(LOGITS), LOGITS.log_softmax(-1))
    tied = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert MULTICLASS.decide(tied).tolist() == [1, 0]
    assert MULTICLASS.named(tied, ("a", "b", "c")) == ["b", "a"]
    assert categorical.votes(tied).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_the_mixture_is_the_mean_of_probabilities_however_small_they_are() -> None:
    shares = [0.1, 0.2, 0.0, 0.7]
    expected = torch.einsum("m,mnc->nc", torch.tensor(shares).double(), LOGITS.double().softmax(-1))
    torch.testing.assert_close(MULTICLASS.mixture(LOGITS, shares).exp(), expected)
    sure = torch.tensor([[[0.0, -5000.0]], [[0.0, -4000.0]]])
    assert float(MULTICLASS.mixture(sure, [0.5, 0.5])[0, 1]) == pytest.approx(-4000.6931, abs=1e-4)


@pytest.mark.parametrize(
    "targets",
    [torch.tensor([0, 1]), torch.tensor([0.0, 1, 2]), torch.tensor([0, 1, 3]), torch.zeros(3, 1)],
)
def test_a_file_with_other_targets_is_told_so(targets: torch.Tensor) -> None:
    assert MULTICLASS.unexpected(MULTICLASS.collate([2, 0, 1]), 3, 3) is None
    assert MULTICLASS.unexpected(targets, 3, 3)


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ()])
def test_two_different_classes_are_the_least(names: tuple[str, ...]) -> None:
    assert MULTICLASS.checked_names(["a", "b"]) == ("a", "b")
    with pytest.raises(TrainingError, match="at least two different classes"):
        MULTICLASS.checked_names(names)


@pytest.mark.parametrize("name", MULTICLASS.figure_names(11))
def test_every_figure_has_its_direction(name: str) -> None:
    """A better answer betters the figure in the direction that the task names."""
    good = 4 * nn.functional.one_hot(LABELS, 6).float()
    bad = 4 * nn.functional.one_hot((LABELS + 5 * (LABELS % 2)) % 6, 6).float()
    if "top5" in name:
        assert MULTICLASS.higher_is_better(f"val/{name}")
        return
    better, worse = (MULTICLASS.figures(each, LABELS)[name] for each in (good, bad))
    assert (better > worse) == MULTICLASS.higher_is_better(f"val/{name}")
