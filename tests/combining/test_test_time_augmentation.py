import pytest
import torch

from finetune.combining.test_time_augmentation import VIEWS, chosen_views, mean_over_views
from finetune.errors import UsageError
from finetune.tasks.multiclass import MULTICLASS

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_keeps_shape_and_range(name: str) -> None:
    view = VIEWS[name](IMAGES)
    assert view.shape == IMAGES.shape
    assert 0 <= view.min() <= view.max() <= 1


def test_what_the_views_show() -> None:
    assert torch.equal(VIEWS["mirrored"](VIEWS["mirrored"](IMAGES)), IMAGES)
    corner = torch.zeros(1, 1, 32, 32)
    corner[..., :2, :2] = 1.0
    assert VIEWS["upper_left"](corner).sum() > corner.sum()  # enlarged
    for name in ("zoomed", "lower_right"):
        assert VIEWS[name](corner).sum() == 0  # cut off
    swapped = VIEWS["mirrored"](VIEWS["upper_right"](corner.flip(-1)))
    torch.testing.assert_close(swapped, VIEWS["upper_left"](corner))


def test_the_mean_of_one_view_is_the_answer_itself() -> None:
    answer = mean_over_views(MULTICLASS, lambda images: images["x"], {"x": IMAGES}, chosen_views(1))
    assert torch.equal(answer, IMAGES)


def test_probabilities_are_averaged_not_logits() -> None:
    views = chosen_views(["original", "mirrored"])
    answer = mean_over_views(
        MULTICLASS, lambda images: 9 * images["x"][:, 0, 0], {"x": IMAGES}, views
    )
    row = 9 * IMAGES[:, 0, 0]
    torch.testing.assert_close(answer.exp(), (row.softmax(-1) + row.flip(-1).softmax(-1)) / 2)


@pytest.mark.parametrize("wanted", [0, 9, [], ["upside_down"]])
def test_unknown_views_are_refused(wanted: object) -> None:
    with pytest.raises(UsageError, match="views"):
        chosen_views(wanted)  # type: ignore[arg-type]
