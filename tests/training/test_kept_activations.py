import pytest
import torch

from finetune.training import kept_activations, probe_phase
from finetune.training.checkpoints import read_checkpoint
from finetune.training.features import frozen_features
from finetune.training.kept_activations import KeptActivations

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def test_kept_activations_train_the_same_network_as_live_pictures(
    run, colour_folder, tmp_path, monkeypatch
):
    plain = {"augmentation": "none"}
    run(colour_folder, tmp_path / "kept", "partial:1", data=plain)
    monkeypatch.setattr(KeptActivations, "data_for", lambda self, boundary, epochs: None)
    run(colour_folder, tmp_path / "live", "partial:1", data=plain)
    kept, live = (
        read_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("kept", "live")
    )
    for name, value in kept.items():
        torch.testing.assert_close(value, live[name], atol=2e-3, rtol=1e-2, msg=name)


def test_a_probe_profits_from_the_views_of_the_phase_after_it(
    run, colour_folder, tmp_path, monkeypatch
):
    passes = []
    whole = frozen_features

    def counting(*arguments, **settings):
        passes.append((settings["boundary"], len(arguments[1].images), settings["view"]))
        return whole(*arguments, **settings)

    monkeypatch.setattr(kept_activations, "frozen_features", counting)
    monkeypatch.setattr(probe_phase, "FEW_A_CLASS", 0)
    fit, _, said = run(colour_folder, tmp_path, "partial:1", epochs=3, views=2)
    assert "in 3 views" in said[0]
    train, val = (len(fit.datamodule.images(split)) for split in ("train", "val"))
    lowest = passes[0][0]
    assert lowest != "head"
    wanted = {(lowest, train, view) for view in (None, *fit._kept.views(2))} | {(lowest, val, None)}
    assert set(passes) == wanted
    assert len(passes) == len(wanted), "each is computed once, also where nothing is stored"
