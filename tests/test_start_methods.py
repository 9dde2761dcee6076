"""Every process that reads images can be started from nothing: macOS, Windows, Python 3.14 do so.

``fork`` hands a child all that its parent holds; ``spawn`` and ``forkserver`` hand it a pickle.
"""

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import finetune
from finetune.cli import main
from finetune.prediction import predict
from finetune.training.classifier import ImageClassifier

FIT = [
    *("fit", "--name=x", "--model.backbone=test_resnet", "--model.pretrained=false"),
    *("--model.image_size=32", "--trainer.accelerator=cpu"),
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


PACKAGE = Path(str(finetune.__file__)).parent
# Made only on an accelerator, or after several phases on live images, of the same parts.
OF_THE_SAME_PARTS = {"data/device_choice.py", "training/interpolation.py"}
# Hands on what is in memory already, in this process.
WITHOUT_PROCESSES = {"training/features/datamodule.py"}


def test_what_a_reading_process_is_handed_can_be_pickled(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every loader that a fit or a prediction makes, wherever it is made."""
    handed: dict[str, bytes] = {}
    make = DataLoader.__init__

    @functools.wraps(make)  # Lightning reads its signature
    def made(self: DataLoader, *given: object, **options: object) -> None:
        make(self, *given, **options)
        for depth in (1, 2):  # of a hook's loaders Lightning is between
            file = Path(sys._getframe(depth).f_code.co_filename)
            if file.is_relative_to(PACKAGE):
                whole = (self.dataset, self.collate_fn, self.worker_init_fn)
                handed[file.relative_to(PACKAGE).as_posix()] = pickle.dumps(whole)

    monkeypatch.setattr(DataLoader, "__init__", made)
    for strategy in ("partial:2", "all"):  # of kept activations, of live images
        assert main([*FIT, f"--data.root={colour_folder}", f"--model.strategy={strategy}"]) == 0
    predict(ImageClassifier.from_checkpoint("runs/x-1/checkpoints/best.ckpt"), colour_folder)
    making = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "DataLoader(" in path.read_text(encoding="utf-8")
    }
    assert making - OF_THE_SAME_PARTS - WITHOUT_PROCESSES <= {*handed}
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
