import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.preprocessing import Preprocessing
from finetune.spec.network import NetworkSpec
from finetune.training.candidates import clearly_better, figure
from finetune.training.checkpoints import describe, write_checkpoint

LABELS = torch.zeros(40, dtype=torch.long)


def checkpoint(path: Path, losses: Tensor | None) -> Path:
    """A file whose held-out pictures, all of the first of two classes, have these losses."""
    val = {}
    if losses is not None:
        first = torch.exp(-losses.double())
        logits = torch.stack([first.log(), (1 - first).log()], dim=1)
        val = {"val": {"logits": logits, "labels": LABELS[: len(losses)], "paths": []}}
    write_checkpoint(
        path,
        state_dict={"w": torch.zeros(1)},
        hyper_parameters={},
        entry=describe(
            ("a", "b"), "test_resnet", Preprocessing(), network=NetworkSpec("test_resnet"), **val
        ),
    )
    return path


@pytest.mark.parametrize(("factor", "better"), [(0.9, False), (1.1, True)])
def test_a_gain_has_to_exceed_its_standard_error(
    factor: float, better: bool, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(40, generator=generator, dtype=torch.float64)
    spread = 0.1 * (spread - spread.mean()) / spread.std()
    error = 0.1 / math.sqrt(40)
    before = torch.full((40,), 0.8, dtype=torch.float64)
    simpler = checkpoint(tmp_path / "simpler.ckpt", before)
    later = checkpoint(tmp_path / "later.ckpt", before - factor * error + spread)
    assert clearly_better(later, simpler, "val/nll") is better


def test_other_figures_are_compared_as_they_are(tmp_path: Path) -> None:
    wrong, right = 1.2, 0.3
    one_wrong = torch.tensor([wrong] + [right] * 39)
    two_wrong = torch.tensor([wrong] * 2 + [right] * 38)
    one, two = (checkpoint(tmp_path / f"{n}.ckpt", v) for n, v in enumerate((one_wrong, two_wrong)))
    assert figure(one, "val/accuracy") == pytest.approx(39 / 40)
    assert clearly_better(one, two, "val/accuracy")
    assert not clearly_better(two, one, "val/accuracy")


def test_without_held_out_pictures_the_later_phase_counts(tmp_path: Path) -> None:
    before, after = (checkpoint(tmp_path / f"{n}.ckpt", None) for n in range(2))
    assert clearly_better(after, before, "val/nll")
    assert figure(after, "val/nll") is None
