"""timm's engine: its loaders, transforms, optimizer, schedule and step, as its train script does.

    python timm_fit.py DATA VALID_FOLDER BACKBONE WEIGHTS CLASSES_IN_WEIGHTS EPOCHS

AdamW 5e-4, cosine with one epoch of warm-up, batch size 32, everything trained from the first
step, batch norm in train mode. Prints one JSON line as ``fastai_fit.py`` does.
"""

import json
import sys
import time

STARTED = time.perf_counter()

import torch  # noqa: E402
from timm import create_model  # noqa: E402
from timm.data import create_dataset, create_loader, resolve_model_data_config  # noqa: E402
from timm.loss import LabelSmoothingCrossEntropy  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402


def main() -> None:
    data, valid, backbone, weights, classes, epochs = sys.argv[1:]
    torch.manual_seed(0)
    train_set = create_dataset("", root=data, split="train", is_training=True)
    valid_set = create_dataset("", root=data, split=valid, class_map=train_set.reader.class_to_idx)
    overlay = {"file": weights, "num_classes": int(classes)}
    names = train_set.reader.class_to_idx
    model = create_model(
        backbone, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=len(names)
    )
    config = resolve_model_data_config(model)
    settings = {
        key: config[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")
    }
    common = {"batch_size": 32, "use_prefetcher": False, "num_workers": 2, **settings}
    train = create_loader(train_set, is_training=True, **common)
    test = create_loader(valid_set, is_training=False, **common)
    begun = time.perf_counter()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05)
    schedule = CosineLRScheduler(
        optimizer, t_initial=int(epochs), warmup_t=1, warmup_lr_init=1e-5, warmup_prefix=True
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    history = []
    for epoch in range(int(epochs)):
        schedule.step(epoch)
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        history.append((time.perf_counter() - STARTED, right / len(valid_set)))
    ended = time.perf_counter()
    found = {
        "process": ended - STARTED,
        "training": ended - begun,
        "accuracy": history[-1][1],
        "epochs": history,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
