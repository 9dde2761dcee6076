"""Every process that reads images can be started from nothing: macOS, Windows, Python 3.14 do so.

``fork`` hands a child all that its parent holds; ``spawn`` and ``forkserver`` hand it a pickle.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from finetune.cli import main
from finetune.prediction import predict
from finetune.training.classifier import ImageClassifier

FIT = [
    *("fit", "--name=x", "--model.backbone=test_resnet", "--model.pretrained=false"),
    *("--model.image_size=32", "--model.strategy=partial:2", "--trainer.accelerator=cpu"),
    *("--trainer.max_epochs=1", "--data.num_workers=0"),
]
PROGRAM = """
import multiprocessing
import sys

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    from finetune.data.datamodule import ImageFolderDataModule

    sums = []
    for workers in (0, 1):
        data = ImageFolderDataModule(sys.argv[2], num_workers=workers, cache="off")
        data.setup("fit")
        sums.append([images.sum().item() for images, _ in data.val_dataloader()])
    assert sums[0] == sums[1], sums
    print("method", multiprocessing.get_start_method())
"""


def test_what_a_reading_process_is_handed_can_be_pickled(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every loader of a fit and of a prediction."""
    handed: dict[str, bytes] = {}
    iterate = DataLoader.__iter__

    def remembered(self: DataLoader) -> object:
        whole = (self.dataset, self.collate_fn, self.worker_init_fn)
        handed[type(self.dataset).__name__] = pickle.dumps(whole)
        return iterate(self)

    monkeypatch.setattr(DataLoader, "__iter__", remembered)
    assert main([*FIT, f"--data.root={colour_folder}"]) == 0
    predict(ImageClassifier.from_checkpoint("runs/x-1/checkpoints/best.ckpt"), colour_folder)
    assert len(handed) >= 3, f"images, kept activations, images to be answered: {list(handed)}"
    for content in handed.values():
        assert pickle.loads(content)  # noqa: S301 - what was pickled above


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_reading_process_starts_from_nothing(
    method: str, colour_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", method, str(colour_folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"method {method}" in done.stdout
