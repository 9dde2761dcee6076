"""fastai's own recipe for several labels an image: ``vision_learner(...).fine_tune(EPOCHS)``.

    python fastai_labels.py DATA MANIFEST BACKBONE WEIGHTS CLASSES_IN_WEIGHTS EPOCHS

``MANIFEST`` has ``path,label,split``; what is not ``test`` is trained on. Prints one JSON line: the
mean average precision on ``test``, and the seconds of the whole process.
"""

import json
import sys
import time

STARTED = time.perf_counter()

import pandas  # noqa: E402
from fastai.vision.all import (  # noqa: E402
    ColReader,
    DataBlock,
    ImageBlock,
    IndexSplitter,
    MultiCategoryBlock,
    Resize,
    vision_learner,
)
from sklearn.metrics import average_precision_score  # noqa: E402


def main() -> None:
    data, manifest, backbone, weights, classes, epochs = sys.argv[1:]
    table = pandas.read_csv(manifest)
    block = DataBlock(
        blocks=(ImageBlock, MultiCategoryBlock),
        get_x=ColReader("path", pref=f"{data}/"),
        get_y=ColReader("label", label_delim="|"),
        splitter=IndexSplitter(table.index[table["split"] == "test"]),
        item_tfms=Resize(224),
    )
    learner = vision_learner(
        block.dataloaders(table, num_workers=2),
        backbone,
        pretrained_cfg_overlay={"file": weights, "num_classes": int(classes)},
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(int(epochs))
        probabilities, targets = learner.get_preds()
    precision = average_precision_score(targets.numpy(), probabilities.numpy(), average="macro")
    print(json.dumps({"map": float(precision), "process": time.perf_counter() - STARTED}))


if __name__ == "__main__":
    main()
