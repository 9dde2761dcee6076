import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from finetune.errors import UsageError
from finetune.training.weight_averaging import EMA, SWA

STEPS = 6  # an epoch


class Small(LightningModule):
    """One linear layer, a frozen one, a float and an integer buffer; notes what it validates."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 2)
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("level", torch.zeros(()))
        self.validated = []
        self.raw = []

    def training_step(self, batch, batch_idx):
        rows, labels = batch
        self.count += 1
        self.level += 1.0
        return torch.nn.functional.cross_entropy(self.layer(self.frozen(rows)), labels)

    def on_train_batch_end(self, *_):
        self.raw.append(self.layer.weight.detach().clone())

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.validated.append(self.layer.weight.detach().clone())
        self.log("val/loss", self.layer(self.frozen(batch[0])).square().mean())

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), lr=0.5)


def loader():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(STEPS * 4, 3, generator=generator)
    return DataLoader(TensorDataset(rows, (rows[:, 0] > 0).long()), batch_size=4)


def trainer_of(tmp_path, *callbacks, epochs=2, **settings):
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/loss")
    # Lightning's save_last writes only when there is a new best.
    last = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[*callbacks, best, last],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **settings,
    )


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:Checkpoint directory .* exists and is not empty",
)


def fit(tmp_path, *callbacks, module=None, **settings):
    module = module or Small()
    trainer = trainer_of(tmp_path, *callbacks, **settings)
    trainer.fit(module, loader(), loader())
    return module, trainer


def test_decay_zero_is_the_raw_model(tmp_path):
    raw, _ = fit(tmp_path / "raw")
    averaged, _ = fit(tmp_path / "ema", EMA(decay=0.0))
    for name, value in raw.state_dict().items():
        torch.testing.assert_close(averaged.state_dict()[name], value, atol=0, rtol=0)


def test_three_steps_by_hand(tmp_path):
    module, _ = fit(tmp_path, EMA(decay=0.9), limit_train_batches=3, epochs=1)
    first, second, third = module.raw
    by_hand = first
    for count, weights in ((1, second), (2, third)):
        kept = min(0.9, (1 + count) / (10 + count))
        by_hand = kept * by_hand + (1 - kept) * weights
    torch.testing.assert_close(module.layer.weight.detach(), by_hand)


def test_warm_up_forgets_the_first_weights(tmp_path):
    short, _ = fit(tmp_path / "a", EMA(decay=0.999), epochs=20)
    fixed, _ = fit(tmp_path / "b", EMA(decay=0.999, warmup=False), epochs=20)
    last, first = short.raw[-1], short.raw[0]
    distance = (first - last).norm()
    assert (short.layer.weight - last).norm() < 0.15 * distance
    assert (fixed.layer.weight - last).norm() > 0.6 * distance


def test_swa_is_the_mean_of_the_later_epochs_and_is_validated(tmp_path):
    module, _ = fit(tmp_path, SWA(start=0.5), epochs=4)
    ends = [module.raw[STEPS * epoch - 1] for epoch in (3, 4)]
    mean = (ends[0] + ends[1]) / 2
    torch.testing.assert_close(module.layer.weight.detach(), mean)
    torch.testing.assert_close(module.validated[-1], mean)
    torch.testing.assert_close(module.validated[0], module.raw[STEPS - 1], atol=0, rtol=0)


@pytest.mark.parametrize("make", [lambda: EMA(decay=0.9), lambda: SWA(start=0.0)])
def test_validated_saved_and_reloaded_weights_are_the_same(make, tmp_path):
    module, trainer = fit(tmp_path, make(), epochs=3)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(last["layer.weight"], module.validated[-1], atol=0, rtol=0)
    torch.testing.assert_close(last["layer.weight"], module.layer.weight.detach(), atol=0, rtol=0)

    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]["layer.weight"]
    assert any(torch.equal(best, validated) for validated in module.validated)
    trainer.test(
        module, loader(), ckpt_path=tmp_path / "best.ckpt", weights_only=True, verbose=False
    )
    assert torch.equal(module.validated[-1], best)
    assert torch.equal(module.layer.weight, best)
    trainer.validate(module, loader(), verbose=False)
    assert torch.equal(module.validated[-1], best)


def test_frozen_parts_stay_and_integers_follow_the_raw_model(tmp_path):
    before = Small().frozen.weight.detach().clone()
    module, _ = fit(tmp_path, EMA(decay=0.7), epochs=3)
    assert torch.equal(module.frozen.weight, before)
    assert int(module.count) == 3 * STEPS
    assert 0 < float(module.level) < 3 * STEPS


class NeverDue(EMA):
    def should_update(self, step_idx=None, epoch_idx=None):
        return False


def test_without_any_update_the_trained_weights_count_everywhere(tmp_path):
    module, _ = fit(tmp_path, NeverDue())
    raw, _ = fit(tmp_path / "raw")
    assert torch.equal(module.layer.weight, raw.layer.weight)
    assert torch.equal(module.validated[-1], module.raw[-1])
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(last["layer.weight"], module.raw[-1])


class Stop(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize("make", [lambda: EMA(decay=0.9), lambda: SWA(start=0.5)])
def test_resumed_is_bit_equal_to_undisturbed(make, tmp_path):
    whole, _ = fit(tmp_path / "whole", make(), epochs=4)
    fit(tmp_path / "part", make(), Stop(), epochs=4)
    resumed = Small()
    trainer = trainer_of(tmp_path / "part", make(), epochs=4)
    trainer.fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "part" / "last.ckpt", weights_only=True
    )
    assert len(resumed.raw) == 2 * STEPS
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_an_average_follows_optimizer_steps_not_batches(tmp_path):
    module, _ = fit(tmp_path, EMA(decay=0.5), epochs=1, accumulate_grad_batches=3)
    first, second = module.raw[2], module.raw[5]
    kept = min(0.5, 2 / 11)
    torch.testing.assert_close(module.layer.weight.detach(), kept * first + (1 - kept) * second)


def test_one_callback_serves_two_fits(tmp_path):
    ema = EMA(decay=0.0)
    module, _ = fit(tmp_path / "one", ema, epochs=3)
    module, _ = fit(tmp_path / "two", ema, module=module, epochs=1)
    assert torch.equal(module.layer.weight, module.raw[-1])


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UsageError, match="decay"):
        EMA(decay=1.0)
    with pytest.raises(UsageError, match="SWA"):
        SWA(start=1.0)
    weights_only = ModelCheckpoint(tmp_path, monitor="x", save_weights_only=True)
    with pytest.raises(UsageError, match="save_weights_only"):
        fit(tmp_path, EMA(), weights_only)
