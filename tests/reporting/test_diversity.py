import pytest
import torch

from finetune.combining.diversity import diversity
from finetune.reporting.diversity import diversity_figure, short_names


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/g-1/seed-0-1", "runs/g-1/seed-1-1"], ["seed-0-1", "seed-1-1"]),
        (["g/seed-0-1/checkpoints/phase2.ckpt", "g/seed-1-1/checkpoints/phase2.ckpt"],
         ["seed-0-1", "seed-1-1"]),
        (["a.ckpt", "folder/b.ckpt"], ["a", "folder/b"]),
        (["a.ckpt", "a.ckpt"], ["a", "a"]),
    ],
)  # fmt: skip
def test_names_keep_what_tells_them_apart(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


def test_every_pair_stands_in_its_cell() -> None:
    probabilities = torch.tensor([[[0.9, 0.1]] * 4, [[0.9, 0.1]] * 3 + [[0.2, 0.8]]])
    found = diversity(probabilities, torch.tensor([0, 0, 1, 1]))
    figure = diversity_figure(found, ["runs/a", "runs/b"])
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["0.0 %", "25.0 %", "25.0 %", "0.0 %"]
    correlation = f"{float(found.error_correlation[0, 1]):.2f}"
    assert [text.get_text() for text in right.texts] == ["1.00", correlation, correlation, "1.00"]
    assert "75.0 %" in figure.get_suptitle()
