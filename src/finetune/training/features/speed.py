"""How long a network takes for an image on this machine."""

from __future__ import annotations

import time

import torch

from finetune.training.classifier import ImageClassifier
from finetune.training.features.extract import BATCH_SIZE

SECONDS = 0.3  # of measuring, at least, ...
BATCHES = 2  # ... and so many, of which the first warms up


@torch.inference_mode()
def milliseconds_an_image(classifier: ImageClassifier) -> float:
    """The least of several batches' times an image; reading is not in it."""
    device, size = classifier.mean.device, classifier.preprocessing.image_size
    count = BATCH_SIZE["cpu" if device.type == "cpu" else "accelerator"]
    shape = (count, classifier.preprocessing.in_chans, size, size)
    images = torch.randint(256, shape, dtype=torch.uint8).to(device)
    network, training = classifier.network, classifier.training
    network.to(memory_format=torch.channels_last)
    classifier.eval()
    try:
        times: list[float] = []
        while len(times) < BATCHES or sum(times) < SECONDS:
            started = time.perf_counter()
            classifier(images).cpu()  # a device has not answered before its answer is here
            times.append(time.perf_counter() - started)
    finally:
        classifier.train(training)
        network.to(memory_format=torch.contiguous_format)
    return 1000 * min(times) / count
