from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import finetune.training.phases.probe as module
from finetune.networks.freezing import network_stages, stages_below
from finetune.tasks.multiclass import MULTICLASS
from finetune.training import interpolation
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.interpolation import best_between
from finetune.training.phases import phased_fit
from finetune.training.phases.phased_fit import PhasedFit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def nll_of(path):
    val = read_checkpoint(path).details["val"]
    return MULTICLASS.figures(val["logits"], val["labels"])["nll"]


@pytest.mark.parametrize(
    ("strategy", "frozen_below", "views"),
    [("head", "head", 1), ("partial:1", "layer4", 1), ("partial:2", "layer3", 2)],
)
def test_frozen_means_bit_identical(run, strategy, frozen_below, views, colour_folder, tmp_path):
    fit, before, _ = run(
        colour_folder, tmp_path, strategy, views=views, batchnorm="train", epochs=3
    )
    network = fit.classifier.network
    frozen = stages_below(network, frozen_below)
    prefixes = {
        name.rpartition(".")[0] for stage in frozen for name in network_stages(network)[stage]
    }
    last = read_checkpoint(tmp_path / "last.ckpt").state_dict
    for state in (last, fit.classifier.state_dict()):
        for name, value in state.items():
            if name.removeprefix("network.").rpartition(".")[0] in prefixes:
                assert torch.equal(value, before[name]), name
    assert not torch.equal(last["network.fc.weight"], before["network.fc.weight"])
    if strategy != "head":
        moved = [n for n in last if "layer4" in n and not torch.equal(last[n], before[n])]
        assert any("weight" in name for name in moved)
        assert any("running_mean" in name for name in moved)


class FirstLook(Callback):
    """The live val logits at the moment when gradient steps begin."""

    def __init__(self):
        self.logits = None

    def on_train_start(self, trainer, pl_module):
        if self.logits is None and pl_module.upper is None:
            pl_module.eval()
            loader = trainer.datamodule.val_dataloader()
            with torch.no_grad():
                self.logits = torch.cat([pl_module(images) for images, _ in loader])
            pl_module.train()


def test_fine_tuning_starts_where_the_probe_ended(run, colour_folder, tmp_path):
    look = FirstLook()
    run(colour_folder, tmp_path / "probe", "head")
    run(colour_folder, tmp_path / "both", "head-then-all", callbacks=[look], epochs=1)
    probe = read_checkpoint(tmp_path / "probe" / "best.ckpt").details["val"]
    torch.testing.assert_close(look.logits, probe["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["head-then-all", "partial:1"])
def test_a_harmful_fine_tuning_is_not_delivered(
    run, strategy, colour_folder, tmp_path, monkeypatch
):
    sure = partial(module.fit_probe, l2=1e-5)  # on these colours nothing can better it
    monkeypatch.setattr(module, "fit_probe", sure)
    run(colour_folder, tmp_path / "probe", "head")
    fit, _, said = run(
        colour_folder, tmp_path / "ruined", strategy, lr=0.2, label_smoothing=0.0, epochs=1
    )
    assert nll_of(tmp_path / "ruined" / "best.ckpt") <= nll_of(tmp_path / "probe" / "best.ckpt")
    probe = read_checkpoint(tmp_path / "probe" / "best.ckpt").state_dict
    found = fit.classifier.state_dict()
    assert all(torch.equal(found[name], value) for name, value in probe.items())
    assert any("earlier phase stays" in line for line in said)


def test_a_helpful_fine_tuning_is_delivered_with_honest_confidence(
    run, colour_folder, tmp_path, monkeypatch
):
    noisy = {"val_fraction": 0.4}
    weak = partial(module.fit_probe, l2=1e5)  # these colours leave a proper probe nothing to gain
    monkeypatch.setattr(module, "fit_probe", weak)
    run(colour_folder, tmp_path / "probe", "head", data=noisy)
    fit, _, _ = run(
        colour_folder,
        tmp_path / "both",
        "head-then-all",
        epochs=4,
        lr=3e-3,
        data=noisy,
        label_smoothing=0.1,
    )
    best = tmp_path / "both" / "best.ckpt"
    assert nll_of(best) < nll_of(tmp_path / "probe" / "best.ckpt")
    # What the file says about the val images is what its weights answer.
    again = ImageClassifier.from_checkpoint(best)
    loader = fit.datamodule.evaluation_dataloader("val", preprocessings=[again.preprocessing])
    with torch.no_grad():
        logits = torch.cat([again(images[0]) for images, _ in loader])
    stored = read_checkpoint(best).details["val"]["logits"]
    torch.testing.assert_close(logits, stored, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("strategy", ["head-then-all", "partial:1"])
def test_points_between_two_phases_are_judged_as_their_ends_were(
    run, strategy, colour_folder, tmp_path, monkeypatch
):
    looks = []

    def look(earlier, later, answer, **options):
        for end in (earlier, later):
            looks.append((answer(end.state_dict), end.outputs[0]))
        return best_between(earlier, later, answer, **options)

    monkeypatch.setattr(phased_fit, "best_between", look)
    run(colour_folder, tmp_path, strategy, epochs=2, lr=3e-3, label_smoothing=0.1)
    assert len(looks) == 2
    for answered, stored in looks:
        torch.testing.assert_close(answered, stored, atol=1e-3, rtol=1e-3)


def test_a_point_between_two_phases_is_delivered(run, colour_folder, tmp_path, monkeypatch):
    weak = partial(module.fit_probe, l2=1e5)
    monkeypatch.setattr(module, "fit_probe", weak)
    held_out = {"val_fraction": 0.4}
    options = {"data": held_out, "epochs": 2, "lr": 1e-3, "label_smoothing": 0.0}
    monkeypatch.setattr(interpolation, "SHARES", ())
    run(colour_folder, tmp_path / "end", "head-then-all", **options)
    # Colours are learned so steadily that the better point lies behind the end of two epochs.
    monkeypatch.setattr(interpolation, "SHARES", (0.5, 1.5))
    fit, _, said = run(colour_folder, tmp_path / "between", "head-then-all", **options)
    best = tmp_path / "between" / "best.ckpt"
    share = read_checkpoint(best).details["fit"]["share"]
    assert share == 1.5
    assert any("150% of the way" in line for line in said)
    assert nll_of(best) < nll_of(tmp_path / "end" / "best.ckpt")
    found = fit.classifier.state_dict()
    for name, value in read_checkpoint(best).state_dict.items():
        assert torch.equal(found[name], value), name


def test_an_undisturbed_fit_reads_none_of_its_files(run, colour_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("candidates are values"))
    run(colour_folder, tmp_path, "gradual", epochs=3, label_smoothing=0.1)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "best.ckpt").details["fit"]["done"]


def test_a_past_deadline_leaves_the_probe(data_of, classifier_of, run, colour_folder, tmp_path):
    datamodule = data_of(colour_folder)
    fit = PhasedFit(
        classifier_of(datamodule),
        datamodule,
        tmp_path,
        pytest.fail,
        strategy="head-then-all",
        epochs=3,
        deadline=0.0,
        say=lambda line: None,
    )
    fit.run()
    assert read_checkpoint(tmp_path / "best.ckpt").details["fit"]["phase"] == 0


def test_without_held_out_images_the_last_epoch_counts(run, colour_folder, tmp_path):
    _, before, _ = run(colour_folder, tmp_path, "head-then-all", data={"val_fraction": 0.0})
    best = read_checkpoint(tmp_path / "best.ckpt")
    assert "val" not in best.details
    moved = best.state_dict["network.conv1.0.weight"]
    assert not torch.equal(moved, before["network.conv1.0.weight"])


def test_a_network_is_learned_from_scratch(run, colour_folder, tmp_path):
    run(
        colour_folder,
        tmp_path,
        "all",
        epochs=12,
        lr=3e-3,
        batchnorm="train",
        data={"augmentation": "none"},
    )
    val = read_checkpoint(tmp_path / "best.ckpt").details["val"]
    assert MULTICLASS.figures(val["logits"], val["labels"])["accuracy"] > 0.8
