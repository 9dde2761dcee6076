"""Random classifiers whose answers differ from image to image."""

from collections.abc import Callable, Sequence

import pytest
import torch

from finetune.combining.calibrated_answer import Calibration
from finetune.combining.calibration import RejectRule, TemperatureFit
from finetune.combining.conformal import ConformalRule
from finetune.training.classifier import ImageClassifier

MakeClassifier = Callable[..., ImageClassifier]
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def calibration() -> Calibration:
    """With every rule, and a temperature that shows."""
    return Calibration(
        fit=TemperatureFit(temperature=1.7, nll_before=1.0, nll_after=0.9, images=50),
        reject=RejectRule(threshold=0.4, risk=0.05, risk_bound=0.1, coverage=0.8),
        conformal=ConformalRule(score="thr", alpha=0.1, threshold=0.8, images=50),
    )


@pytest.fixture(scope="session")
def make_classifier(calibration: Calibration) -> MakeClassifier:
    """A network with random weights; its logits are spread to about one."""

    def make(
        backbone: str = "test_resnet",
        size: int = 32,
        *,
        seed: int = 0,
        class_names: Sequence[str] = CLASSES,
        calibrated: bool = False,
        **options: object,
    ) -> ImageClassifier:
        torch.manual_seed(seed)
        classifier = ImageClassifier(
            class_names, backbone, pretrained=False, image_size=size, **options
        )
        preprocessing = classifier.preprocessing
        images = torch.rand(4, preprocessing.in_chans, size, size)
        # Images that differ in brightness, so that their answers do.
        images *= torch.linspace(0.1, 1, 4).view(-1, 1, 1, 1)
        head = classifier.network.get_classifier()
        for _ in range(2):  # centre the logits, then spread them
            with torch.no_grad():
                logits = classifier.eval()(images)
                spread = logits.std(dim=0).clamp_min(1e-6).mean()
                head.weight.div_(spread)
                head.bias.sub_(logits.mean(dim=0)).div_(spread)
        if calibrated:
            classifier.details["calibration"] = calibration.to_dict()
        return classifier

    return make
