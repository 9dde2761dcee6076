"""A small model with every rule, and how it is served."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from finetune.combining.calibrated_answer import Calibration
from finetune.combining.calibration import RejectRule, TemperatureFit
from finetune.combining.conformal import ConformalRule
from finetune.combining.ensemble import Ensemble
from finetune.combining.unknown import fit_unknown
from finetune.prediction.feature_space import features_of
from finetune.serving.app import Service, application
from finetune.serving.budget import Limits
from finetune.serving.engine import Engine
from finetune.training.classifier import ImageClassifier

CLASSES = ("blue", "green", "red")
Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def classifier(colour_folder: Path) -> ImageClassifier:
    """Random weights; refuses, builds sets, and knows what it has never seen."""
    torch.manual_seed(0)
    made = ImageClassifier(CLASSES, "test_resnet", pretrained=False, image_size=32).eval()
    made.details["calibration"] = Calibration(
        fit=TemperatureFit(temperature=1.7, nll_before=1.0, nll_after=0.9, images=50),
        reject=RejectRule(threshold=0.4, risk=0.05, risk_bound=0.1, coverage=0.8),
        conformal=ConformalRule(score="thr", alpha=0.1, threshold=0.8, images=50),
    ).to_dict()
    features = torch.from_numpy(features_of(made, colour_folder).values)
    labels = torch.arange(36) // 12
    rule = fit_unknown(features[::2], labels[::2], features[1::2], alpha=0.1)
    made.details["unknown"] = rule.to_entry()
    return made


@pytest.fixture(scope="session")
def serve() -> Serve:
    """A client of a served model; the server is on this machine's own address."""

    def client(
        model: ImageClassifier | Ensemble, limits: Limits | None = None, **service: object
    ) -> TestClient:
        limits = limits or Limits()
        engine = Engine(model, images_in_work=limits.images_in_work, max_pixels=10**6)
        app = application(Service(model, engine, limits, **service))  # type: ignore[arg-type]
        return TestClient(app, base_url="http://127.0.0.1:8000")

    return client
