"""Fine-tune image classifiers on small folders of images, and combine the fine-tuned models.

The public names are imported when they are first used, so that ``import finetune`` and the
``finetune`` command start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.combining.ensemble import Ensemble as Ensemble
    from finetune.combining.soups import average_checkpoints as average_checkpoints
    from finetune.commands.average import average as average
    from finetune.commands.calibrate import calibrate as calibrate
    from finetune.commands.check import check as check
    from finetune.commands.compare import compare as compare
    from finetune.commands.embed import embed as embed
    from finetune.commands.ensemble import ensemble as ensemble
    from finetune.commands.explain import explain as explain
    from finetune.commands.inspect import inspect as inspect
    from finetune.commands.models import models as models
    from finetune.commands.report import report as report
    from finetune.commands.run import Run as Run
    from finetune.commands.run import fit as fit
    from finetune.commands.run import test as test
    from finetune.commands.run import validate as validate
    from finetune.commands.sample import sample as sample
    from finetune.commands.similar import similar as similar
    from finetune.commands.split import split as split
    from finetune.commands.suggest import suggest as suggest
    from finetune.data.datamodule import ImageFolderDataModule as ImageFolderDataModule
    from finetune.errors import FinetuneError as FinetuneError
    from finetune.evaluation.evaluate import evaluate as evaluate
    from finetune.evaluation.result import Evaluation as Evaluation
    from finetune.exporting.export import export as export
    from finetune.networks.factory import create_network as create_network
    from finetune.prediction import Predictions as Predictions
    from finetune.prediction import predict as predict
    from finetune.prediction.feature_space import Features as Features
    from finetune.prediction.predictor import Predictor as Predictor
    from finetune.prediction.predictor import load as load
    from finetune.reporting.report import write_report as write_report
    from finetune.spec.preprocessing import Preprocessing as Preprocessing
    from finetune.training.checkpoints import read_checkpoint as read_checkpoint
    from finetune.training.classifier import ImageClassifier as ImageClassifier

_HOMES = {
    "Ensemble": "finetune.combining.ensemble",
    "Evaluation": "finetune.evaluation.result",
    "Features": "finetune.prediction.feature_space",
    "FinetuneError": "finetune.errors",
    "ImageClassifier": "finetune.training.classifier",
    "ImageFolderDataModule": "finetune.data.datamodule",
    "Predictions": "finetune.prediction",
    "Predictor": "finetune.prediction.predictor",
    "Preprocessing": "finetune.spec.preprocessing",
    "Run": "finetune.commands.run",
    "average": "finetune.commands.average",
    "average_checkpoints": "finetune.combining.soups",
    "calibrate": "finetune.commands.calibrate",
    "check": "finetune.commands.check",
    "compare": "finetune.commands.compare",
    "create_network": "finetune.networks.factory",
    "embed": "finetune.commands.embed",
    "ensemble": "finetune.commands.ensemble",
    "evaluate": "finetune.evaluation.evaluate",
    "explain": "finetune.commands.explain",
    "export": "finetune.exporting.export",
    "fit": "finetune.commands.run",
    "inspect": "finetune.commands.inspect",
    "load": "finetune.prediction.predictor",
    "models": "finetune.commands.models",
    "predict": "finetune.prediction",
    "read_checkpoint": "finetune.training.checkpoints",
    "report": "finetune.commands.report",
    "sample": "finetune.commands.sample",
    "similar": "finetune.commands.similar",
    "split": "finetune.commands.split",
    "suggest": "finetune.commands.suggest",
    "test": "finetune.commands.run",
    "validate": "finetune.commands.run",
    "write_report": "finetune.reporting.report",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
