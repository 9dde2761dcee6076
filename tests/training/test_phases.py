import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

import finetune.training.phases as module
from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.dataset import balancing_weights
from finetune.errors import TrainingError
from finetune.networks.freezing import network_stages, stages_below
from finetune.training import time_limit
from finetune.training.checkpoints import read_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.feature_store import Activations
from finetune.training.kept_data import KeptData
from finetune.training.metrics import figures_of
from finetune.training.phases import PhasedFit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def data_of(colour_folder, **settings):
    settings = {"batch_size": 8, "val_fraction": 0.25, "test_fraction": 0.0, **settings}
    datamodule = ImageFolderDataModule(colour_folder, num_workers=0, cache="off", **settings)
    datamodule.setup("fit")
    return datamodule


def classifier_of(datamodule, backbone="test_resnet", seed=0, **settings):
    torch.manual_seed(seed)
    return ImageClassifier(
        datamodule.class_names,
        backbone,
        pretrained=False,
        image_size=32,
        **{"batchnorm": "eval", "lr": 1e-3, "backbone_lr_factor": 1.0, **settings},
    )


def run(
    colour_folder,
    folder,
    strategy,
    *,
    epochs=2,
    callbacks=(),
    resume=None,
    data=None,
    fit_options=None,
    **settings,
):
    datamodule = data_of(colour_folder, **(data or {}))
    classifier = classifier_of(datamodule, **settings)
    said = []

    def new_trainer(phase):
        return Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            max_epochs=phase.max_epochs,
            callbacks=[*callbacks, *phase.callbacks],
            accumulate_grad_batches=phase.accumulate_grad_batches,
            default_root_dir=folder,
        )

    fit = PhasedFit(
        classifier,
        datamodule,
        Path(folder),
        new_trainer,
        strategy=strategy,
        epochs=epochs,
        say=said.append,
        **(fit_options or {}),
    )
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    fit.run(resume)
    return fit, before, said


def nll_of(path):
    val = read_checkpoint(path).details["val"]
    return figures_of(val["logits"], val["labels"])["nll"]


@pytest.mark.parametrize(
    ("strategy", "frozen_below", "views"),
    [("head", "head", 0), ("partial:1", "layer4", 0), ("partial:2", "layer3", 2)],
)
def test_frozen_means_bit_identical(strategy, frozen_below, views, colour_folder, tmp_path):
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


def test_fine_tuning_starts_where_the_probe_ended(colour_folder, tmp_path):
    look = FirstLook()
    run(colour_folder, tmp_path / "probe", "head")
    run(colour_folder, tmp_path / "both", "head-then-all", callbacks=[look], epochs=1)
    probe = read_checkpoint(tmp_path / "probe" / "best.ckpt").details["val"]
    torch.testing.assert_close(look.logits, probe["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["head-then-all", "partial:1"])
def test_a_harmful_fine_tuning_is_not_delivered(strategy, colour_folder, tmp_path):
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
    colour_folder, tmp_path, monkeypatch
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
    # What the file says about the val pictures is what its weights answer.
    again = ImageClassifier.from_checkpoint(best)
    loader = fit.datamodule.evaluation_dataloader("val", preprocessings=[again.preprocessing])
    with torch.no_grad():
        logits = torch.cat([again(images[0]) for images, _ in loader])
    stored = read_checkpoint(best).details["val"]["logits"]
    torch.testing.assert_close(logits, stored, atol=1e-3, rtol=1e-3)


def test_kept_activations_train_the_same_network_as_live_pictures(
    colour_folder, tmp_path, monkeypatch
):
    plain = {"augmentation": "none"}
    run(colour_folder, tmp_path / "kept", "partial:1", data=plain)
    monkeypatch.setattr(PhasedFit, "_kept", lambda self, boundary, epochs: None)
    run(colour_folder, tmp_path / "live", "partial:1", data=plain)
    kept, live = (
        read_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("kept", "live")
    )
    for name, value in kept.items():
        torch.testing.assert_close(value, live[name], atol=2e-3, rtol=1e-2, msg=name)


class Disturb(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise ZeroDivisionError


@pytest.mark.parametrize(
    ("strategy", "step"),
    [("partial:1", 5), ("head-then-all", 0), ("head-then-all", 9), ("gradual", 2), ("all", 9)],
)
def test_resumed_is_bit_equal_to_undisturbed(strategy, step, colour_folder, tmp_path):
    settings = {"epochs": 3, "drop_rate": 0.2, "l2_sp": 0.01}
    if strategy == "head-then-all":
        settings["mixup_alpha"] = 0.1
    run(colour_folder, tmp_path / "whole", strategy, **settings)
    with pytest.raises(ZeroDivisionError):
        run(colour_folder, tmp_path / "part", strategy, callbacks=[Disturb(step)], **settings)
    last = tmp_path / "part" / "last.ckpt"
    run(colour_folder, tmp_path / "part", strategy, resume=last, seed=99, **settings)
    for name in ("last.ckpt", "best.ckpt"):
        whole = read_checkpoint(tmp_path / "whole" / name)
        part = read_checkpoint(tmp_path / "part" / name)
        for key, value in whole.state_dict.items():
            assert torch.equal(part.state_dict[key], value), (name, key)


def test_accumulated_batches_are_one_batch(colour_folder, tmp_path):
    class Accumulate(Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.accumulate_grad_batches = 2

    plain = {"augmentation": "none", "val_fraction": 1 / 3}  # 24 training pictures
    settings = {"optimizer": "sgd", "label_smoothing": 0.0, "epochs": 2}
    run(colour_folder, tmp_path / "one", "head-then-all", data=plain, **settings)
    halves = {**plain, "batch_size": 4}
    run(
        colour_folder,
        tmp_path / "two",
        "head-then-all",
        data=halves,
        callbacks=[Accumulate()],
        **settings,
    )
    one, two = (read_checkpoint(tmp_path / n / "last.ckpt").state_dict for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-4, rtol=1e-3, msg=name)


class LittleMemory(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(batch[1]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_halves_the_batch_and_keeps_the_step(colour_folder, tmp_path):
    fit, _, said = run(colour_folder, tmp_path, "head-then-all", callbacks=[LittleMemory()])
    assert fit.datamodule.batch_size == 2
    assert fit.trainer.accumulate_grad_batches == 4
    assert sum("out of memory" in line for line in said) == 2
    assert fit.trainer.global_step == 2 * -(-27 // 8)


class Poison(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            batch[0].fill_(float("nan"))


def test_a_loss_that_is_no_number_stops_with_a_remedy(colour_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"learning rate.*--model\.lr"):
        run(colour_folder, tmp_path, "head-then-all", callbacks=[Poison()], epochs=4)
    for name in ("best.ckpt", "last.ckpt"):
        state = read_checkpoint(tmp_path / name).state_dict
        assert all(bool(value.isfinite().all()) for value in state.values())
    progress = read_checkpoint(tmp_path / "last.ckpt").details["fit"]
    assert progress["phase"] == 1


def test_a_past_deadline_leaves_the_probe(colour_folder, tmp_path):
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


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_time_limit_shortens_the_schedule_and_the_rate_still_falls_to_its_end(
    colour_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(time_limit, "_seconds_a_step", lambda classifier, loader: 60.0)
    rates = Rates()
    an_epoch = 60.0 * time_limit.SLACK * (4 + time_limit.JUDGING_COST * 2)  # 27 and 9 pictures
    _, _, said = run(
        colour_folder,
        tmp_path,
        "head-then-all",
        callbacks=[rates],
        epochs=40,
        fit_options={"deadline": time.monotonic() + 3.5 * an_epoch},
    )
    assert "there is time for 3 of 40 epochs" in said
    assert len(rates.rates) == 3 * 4
    assert rates.rates[-1] < 0.01 * max(rates.rates)


def test_a_rehearsal_leaves_no_trace(colour_folder):
    datamodule = data_of(colour_folder)
    classifier = classifier_of(datamodule, batchnorm="train")
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    random_state = torch.random.get_rng_state()
    assert time_limit.epochs_within(3600.0, classifier, datamodule, 7) == 7
    assert time_limit.epochs_within(0.0, classifier, datamodule, 7) == 1
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize(
    ("augmentation", "few", "rows"), [("light", 20, 4), ("none", 20, 1), ("light", 5, 1)]
)
def test_few_pictures_fit_the_final_layer_in_several_views_never_split_between_folds(
    augmentation, few, rows, colour_folder, tmp_path, monkeypatch
):
    seen = {}

    def fit_probe(features, labels, classes, **settings):
        seen.update(features=features, labels=labels, groups=settings["groups"])
        return whole(features, labels, classes, **settings)

    whole = module.fit_probe
    monkeypatch.setattr(module, "fit_probe", fit_probe)
    monkeypatch.setattr(module, "FEW_A_CLASS", few)
    fit, _, _ = run(colour_folder, tmp_path, "head", data={"augmentation": augmentation})
    count = len(fit.datamodule.images("train"))  # 27, 9 a class
    assert len(seen["features"]) == len(seen["labels"]) == rows * count
    for view in range(1, rows):
        own = slice(view * count, (view + 1) * count)
        assert torch.equal(seen["labels"][own], seen["labels"][:count])
        assert torch.equal(seen["groups"][own], seen["groups"][:count])
        assert not torch.equal(seen["features"][own], seen["features"][:count])


def test_a_phase_that_gains_nothing_stops_early(colour_folder, tmp_path):
    rates = Rates()
    settings = {"epochs": 12, "lr": 0.2, "label_smoothing": 0.1, "fit_options": {"patience": 2}}
    _, _, said = run(colour_folder, tmp_path, "head-then-all", callbacks=[rates], **settings)
    assert "stopped early: nothing better for 2 epochs" in said
    assert len(rates.rates) < 12 * 4
    assert read_checkpoint(tmp_path / "best.ckpt").details["fit"]["phase"] == 0
    beside = read_checkpoint(tmp_path / "phase2.ckpt")  # nothing is lost: an ensemble may want it
    assert beside.details["fit"]["phase"] == 1


def test_balanced_draws_reach_the_probe(colour_folder, tmp_path, monkeypatch):
    datamodule = data_of(colour_folder, balanced=True)
    classifier = classifier_of(datamodule)
    fit = PhasedFit(classifier, datamodule, tmp_path, pytest.fail, strategy="head", epochs=1)
    labels = torch.tensor([0] * 6 + [1] * 2 + [2])
    monkeypatch.setattr(ImageFolderDataModule, "draw_weights", balancing_weights(labels.tolist()))
    weights = fit._sample_weights(labels)
    sums = torch.zeros(3, dtype=torch.float64).index_add_(0, labels, weights)
    torch.testing.assert_close(sums, torch.full((3,), 3.0, dtype=torch.float64))


def test_kept_activations_are_drawn_as_pictures_are(colour_folder):
    datamodule = data_of(colour_folder, balanced=True)
    count = len(datamodule.images("train"))
    rows = Activations(
        [np.arange(count, dtype=np.float32)[:, None]], [(0, i) for i in range(count)]
    )
    kept = KeptData(datamodule, [rows], None)
    drawn = [int(value) for batch, _ in kept.train_dataloader() for value in batch[:, 0]]
    expected = [draw.index for draw in datamodule.train_dataloader().sampler]
    assert drawn == expected
    assert len(set(drawn)) < count, "with replacement"


@pytest.mark.parametrize("data", [{}, {"val_fraction": 0.0}], ids=["val", "no val"])
def test_snapshots_are_the_weights_at_the_end_of_each_cycle(data, colour_folder, tmp_path):
    rates = Rates()
    settings = {"epochs": 5, "snapshots": 3, "fit_options": {"patience": 1}, "data": data}
    fit, _, _ = run(colour_folder, tmp_path, "head-then-all", callbacks=[rates], **settings)
    a_cycle = len(rates.rates) // 3
    assert len(rates.rates) == 6 * len(fit.datamodule.train_dataloader())  # 5, rounded up to cycles
    lasts = [rates.rates[end * a_cycle - 2] for end in (1, 2, 3)]  # noted after each step's update
    assert max(lasts) < max(rates.rates) / 3
    kept = [read_checkpoint(tmp_path / f"snapshot{n}.ckpt").state_dict for n in (1, 2, 3)]
    last = read_checkpoint(tmp_path / "last.ckpt").state_dict
    assert all(torch.equal(kept[2][name], value) for name, value in last.items())
    name = "network.conv1.0.weight"
    assert not torch.equal(kept[0][name], kept[1][name])
    assert not (tmp_path / "snapshot4.ckpt").exists()


def test_without_held_out_pictures_the_last_epoch_counts(colour_folder, tmp_path):
    _, before, _ = run(colour_folder, tmp_path, "head-then-all", data={"val_fraction": 0.0})
    best = read_checkpoint(tmp_path / "best.ckpt")
    assert "val" not in best.details
    moved = best.state_dict["network.conv1.0.weight"]
    assert not torch.equal(moved, before["network.conv1.0.weight"])


def test_a_checkpoint_of_another_strategy_is_refused(colour_folder, tmp_path):
    run(colour_folder, tmp_path, "head")
    with pytest.raises(TrainingError, match="by head"):
        run(colour_folder, tmp_path, "head-then-all", resume=tmp_path / "last.ckpt")


def test_a_network_is_learned_from_scratch(colour_folder, tmp_path):
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
    assert figures_of(val["logits"], val["labels"])["accuracy"] > 0.8
