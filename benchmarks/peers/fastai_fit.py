"""fastai's own recipe: ``vision_learner(...).fine_tune(EPOCHS)`` with its defaults.

    python fastai_fit.py DATA VALID_FOLDER BACKBONE WEIGHTS CLASSES_IN_WEIGHTS EPOCHS

Prints one JSON line: seconds of the whole process so far, of training alone, and the validation
accuracy after each epoch with its time.
"""

import json
import sys
import time

STARTED = time.perf_counter()

from fastai.callback.core import Callback  # noqa: E402
from fastai.vision.all import ImageDataLoaders, Resize, accuracy, vision_learner  # noqa: E402


class Clock(Callback):
    """Notes time and validation accuracy after each epoch."""

    order = 60  # after fastai's Recorder
    epochs: list[tuple[float, float]] = []  # noqa: RUF012

    def after_epoch(self) -> None:
        """Called by fastai."""
        values = self.learn.recorder.values[-1]
        self.epochs.append((time.perf_counter() - STARTED, float(values[-1])))


def main() -> None:
    data, valid, backbone, weights, classes, epochs = sys.argv[1:]
    loaders = ImageDataLoaders.from_folder(
        data, train="train", valid=valid, item_tfms=Resize(224), num_workers=2
    )
    learner = vision_learner(
        loaders,
        backbone,
        metrics=accuracy,
        pretrained_cfg_overlay={"file": weights, "num_classes": int(classes)},
        cbs=Clock(),
    )
    begun = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(int(epochs))
    ended = time.perf_counter()
    found = {
        "process": ended - STARTED,
        "training": ended - begun,
        "accuracy": Clock.epochs[-1][1],
        "epochs": Clock.epochs,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
