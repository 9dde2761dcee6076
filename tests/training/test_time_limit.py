import pytest
import torch

from finetune.training import time_limit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def test_a_rehearsal_leaves_no_trace(data_of, classifier_of, colour_folder):
    datamodule = data_of(colour_folder)
    classifier = classifier_of(datamodule, batchnorm="train")
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    random_state = torch.random.get_rng_state()
    assert time_limit.epochs_within(3600.0, classifier, datamodule, 7) == 7
    assert time_limit.epochs_within(0.0, classifier, datamodule, 7) == 1
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in classifier.parameters())
