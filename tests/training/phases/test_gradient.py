import time

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from finetune.errors import TrainingError
from finetune.training import time_limit
from finetune.training.checkpoints import read_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class LittleMemory(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(batch[1]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_halves_the_batch_and_keeps_the_step(run, colour_folder, tmp_path):
    fit, _, said = run(colour_folder, tmp_path, "head-then-all", callbacks=[LittleMemory()])
    assert fit.datamodule.batch_size == 2
    assert fit.trainer.accumulate_grad_batches == 4
    assert sum("out of memory" in line for line in said) == 2
    assert fit.trainer.global_step == 2 * -(-27 // 8)


class Poison(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            pl_module.network.get_classifier().weight.data.fill_(float("nan"))


def test_a_loss_that_is_no_number_stops_with_a_remedy(run, colour_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"learning rate.*--model\.lr"):
        run(colour_folder, tmp_path, "head-then-all", callbacks=[Poison()], epochs=4)
    for name in ("best.ckpt", "last.ckpt"):
        state = read_checkpoint(tmp_path / name).state_dict
        assert all(bool(value.isfinite().all()) for value in state.values())
    progress = read_checkpoint(tmp_path / "last.ckpt").details["fit"]
    assert progress["phase"] == 1


def test_a_time_limit_shortens_the_schedule_and_the_rate_still_falls_to_its_end(
    new_rates, run, colour_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(time_limit, "_seconds_a_step", lambda classifier, loader: 60.0)
    rates = new_rates()
    an_epoch = 60.0 * time_limit.SLACK * (4 + time_limit.JUDGING_COST * 2)  # 27 and 9 images
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


def test_a_phase_that_gains_nothing_stops_early(new_rates, run, colour_folder, tmp_path):
    rates = new_rates()
    settings = {"epochs": 12, "lr": 0.2, "label_smoothing": 0.1, "fit_options": {"patience": 2}}
    _, _, said = run(colour_folder, tmp_path, "head-then-all", callbacks=[rates], **settings)
    assert "stopped early: no better val/nll_rescaled for 2 epochs" in said
    assert len(rates.rates) < 12 * 4
    assert read_checkpoint(tmp_path / "best.ckpt").details["fit"]["phase"] == 0
    beside = read_checkpoint(tmp_path / "phase2.ckpt")  # nothing is lost: an ensemble may want it
    assert beside.details["fit"]["phase"] == 1


def test_accumulated_batches_are_one_batch(run, colour_folder, tmp_path):
    class Accumulate(Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.accumulate_grad_batches = 2

    plain = {"augmentation": "none", "val_fraction": 1 / 3}  # 24 training images
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


@pytest.mark.parametrize("data", [{}, {"val_fraction": 0.0}], ids=["val", "no val"])
def test_snapshots_are_the_weights_at_the_end_of_each_cycle(
    new_rates, run, data, colour_folder, tmp_path
):
    rates = new_rates()
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
