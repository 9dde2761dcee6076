from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.combining.bootstrap_heads import bootstrap_heads, ensemble_of_heads
from finetune.combining.ensemble import Ensemble
from finetune.data.datamodule import ImageFolderDataModule
from finetune.errors import UsageError
from finetune.networks.splitting import split_at_parameters
from finetune.tasks.held_out_loss import held_out_loss, held_out_losses
from finetune.training.classifier import ImageClassifier

MakeCheckpoint = Callable[..., Path]


def test_heads_on_one_backbone_differ_and_answer_better_together(
    make_checkpoint: MakeCheckpoint, datamodule: ImageFolderDataModule
) -> None:
    classifier = ImageClassifier.from_checkpoint(make_checkpoint())
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    view = (classifier.preprocessing,)
    batches = list(datamodule.evaluation_dataloader("train", preprocessings=view))
    images = torch.cat([views[0] for views, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    bottom = split_at_parameters(classifier.network, "head", ()).bottom
    features = bottom(classifier.normalised(images))
    heads = bootstrap_heads(features, labels, 3, heads=6)
    again = bootstrap_heads(features, labels, 3, heads=2)
    torch.testing.assert_close(heads[1].weight, again[1].weight)
    ensemble = ensemble_of_heads(classifier, heads)
    assert len(ensemble._groups) == 1  # one backbone for all
    assert all(torch.equal(before[name], t) for name, t in classifier.state_dict().items())
    assert isinstance(ensemble, Ensemble)
    held_out = ensemble.held_out(datamodule)
    member_nll = held_out_losses(held_out.member_logits, held_out.labels, "nll")
    nll = held_out_loss(ensemble.pool(held_out.member_logits), held_out.labels, "nll")
    assert nll < member_nll.mean()
    assert member_nll.std() > 0


def test_no_head_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one head"):
        bootstrap_heads(torch.zeros(4, 2), torch.arange(4) % 2, 2, heads=0)
