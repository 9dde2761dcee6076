import pytest
import torch

from finetune.training.checkpoints import read_checkpoint
from finetune.training.features.activations import CachedActivations

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def test_kept_activations_train_the_same_network_as_live_images(
    run, colour_folder, tmp_path, monkeypatch
):
    plain = {"augmentation": "none"}
    run(colour_folder, tmp_path / "kept", "partial:1", data=plain)
    monkeypatch.setattr(CachedActivations, "data_for", lambda self, boundary, epochs: None)
    run(colour_folder, tmp_path / "live", "partial:1", data=plain)
    kept, live = (
        read_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("kept", "live")
    )
    for name, value in kept.items():
        torch.testing.assert_close(value, live[name], atol=2e-3, rtol=1e-2, msg=name)
