import os
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from finetune.data.on_device import DeviceBatches
from finetune.errors import TrainingError
from finetune.training import best_epoch, time_limit
from finetune.training.checkpoints import read_checkpoint, read_content
from finetune.training.phases import gradient
from finetune.training.resume import ResumePoint, resume_point_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def place(last, strategy, monitor="val/nll"):
    content = read_content(last)
    return resume_point_of(last, content, strategy=strategy, monitor=monitor, folder=last.parent)


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
def test_resumed_is_bit_equal_to_undisturbed(run, strategy, step, colour_folder, tmp_path):
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


def test_a_fit_on_images_that_live_on_the_device_learns_and_is_resumed_bit_equal(
    run, colour_folder, tmp_path
):
    settings = {"epochs": 6, "lr": 3e-3, "batchnorm": "train", "data": {"on_device": "on"}}
    fit, _, _ = run(colour_folder, tmp_path / "whole", "all", **settings)
    assert isinstance(fit.datamodule.train_dataloader(), DeviceBatches)
    assert fit.found.figure("val/accuracy") > 0.8  # a third of chance
    with pytest.raises(ZeroDivisionError):
        run(colour_folder, tmp_path / "part", "all", callbacks=[Disturb(14)], **settings)
    last = tmp_path / "part" / "last.ckpt"
    run(colour_folder, tmp_path / "part", "all", resume=last, seed=99, **settings)
    whole, part = (read_checkpoint(tmp_path / side / "last.ckpt") for side in ("whole", "part"))
    for key, value in whole.state_dict.items():
        assert torch.equal(part.state_dict[key], value), key


def test_epochs_that_were_not_written_are_repeated_bit_for_bit(
    run, colour_folder, tmp_path, monkeypatch
):
    """An accelerator's epochs are shorter than the time between two writes."""
    monkeypatch.setattr(best_epoch, "SECONDS_BETWEEN", float("inf"))
    settings = {"epochs": 4, "drop_rate": 0.2}
    written = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (written.append(Path(b).name), replace(a, b)))
    run(colour_folder, tmp_path / "whole", "all", **settings)
    assert written.count("last.ckpt") == 2  # after the first epoch and at the end
    with pytest.raises(ZeroDivisionError):
        run(colour_folder, tmp_path / "part", "all", callbacks=[Disturb(14)], **settings)
    last = tmp_path / "part" / "last.ckpt"
    assert read_checkpoint(last).details["fit"]["phase"] == 0
    assert read_content(last)["epoch"] == 0
    run(colour_folder, tmp_path / "part", "all", resume=last, seed=99, **settings)
    for name in ("last.ckpt", "best.ckpt"):
        whole, part = (read_checkpoint(tmp_path / side / name) for side in ("whole", "part"))
        for key, value in whole.state_dict.items():
            assert torch.equal(part.state_dict[key], value), (name, key)


def test_a_fit_shortened_by_a_time_limit_goes_on_with_the_shortened_schedule(
    run, new_rates, colour_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(time_limit, "_seconds_a_step", lambda classifier, loader: 60.0)
    an_epoch = 60.0 * time_limit.SLACK * (4 + time_limit.JUDGING_COST * 2)  # 27 and 9 images
    whole, rest = new_rates(), new_rates()

    def fit(name, *callbacks, **settings):
        return run(colour_folder, tmp_path / name, "head-then-all", callbacks=callbacks, **settings)

    def limit():
        return {"deadline": time.monotonic() + 3.5 * an_epoch}

    fit("whole", whole, epochs=40, fit_options=limit())
    with pytest.raises(ZeroDivisionError):
        fit("part", Disturb(6), epochs=40, fit_options=limit())
    last = tmp_path / "part" / "last.ckpt"
    shortened = {"from": 40, "to": 3}
    assert place(last, "head-then-all") == ResumePoint(1, last, epochs=1, shortened=shortened)
    _, _, said = fit("part", rest, epochs=40, resume=last, seed=99)
    assert "phase 2: everything for 3 epochs" in said
    assert rest.rates == whole.rates[4:]
    assert read_checkpoint(last).details["fit"]["shortened"] == shortened  # to go on once more
    undisturbed = read_checkpoint(tmp_path / "whole" / "last.ckpt").state_dict
    found = read_checkpoint(last).state_dict
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def test_another_number_of_epochs_by_hand_wins_over_the_shortened_one(
    run, new_rates, colour_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(gradient, "epochs_within", lambda *_: 2)
    settings = {"fit_options": {"deadline": time.monotonic() + 3600}}
    with pytest.raises(ZeroDivisionError):
        run(colour_folder, tmp_path, "all", epochs=9, callbacks=[Disturb(6)], **settings)
    rates = new_rates()
    last = tmp_path / "last.ckpt"
    run(colour_folder, tmp_path, "all", epochs=4, callbacks=[rates], resume=last)
    assert len(rates.rates) == 3 * 4


def test_weights_alone_are_no_place_to_go_on_from(run, colour_folder, tmp_path):
    fit, _, _ = run(colour_folder, tmp_path, "all", epochs=1)
    fit.found.but(done=False).write(tmp_path / "best.ckpt")
    with pytest.raises(TrainingError, match="weights alone"):
        place(tmp_path / "best.ckpt", "all")


def test_the_best_of_the_earlier_phases_is_asked_for(run, colour_folder, tmp_path):
    run(colour_folder, tmp_path / "fit", "head-then-all", epochs=1)
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "fit" / "last.ckpt").rename(alone / "last.ckpt")
    with pytest.raises(TrainingError, match=r"found no best\.ckpt"):
        run(colour_folder, alone, "head-then-all", epochs=1, resume=alone / "last.ckpt")


def test_a_fit_picked_by_another_figure_is_refused(run, colour_folder, tmp_path):
    run(colour_folder, tmp_path, "all", epochs=1)
    with pytest.raises(TrainingError, match="--monitor"):
        place(tmp_path / "last.ckpt", "all", monitor="val/accuracy")


def test_a_finished_probe_is_not_repeated(run, colour_folder, tmp_path):
    run(colour_folder, tmp_path, "head")
    assert place(tmp_path / "last.ckpt", "head") == ResumePoint(1)
    _, _, said = run(colour_folder, tmp_path, "head", resume=tmp_path / "last.ckpt")
    assert said == []


def test_a_checkpoint_of_another_strategy_is_refused(run, colour_folder, tmp_path):
    run(colour_folder, tmp_path, "head")
    with pytest.raises(TrainingError, match="by head"):
        run(colour_folder, tmp_path, "head-then-all", resume=tmp_path / "last.ckpt")
