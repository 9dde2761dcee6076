"""Files of format 1, written before checkpoints held their network, answer as they did.

They were written at commit e748dff, with a preprocessing that is not the baseline's own, and lie in
``fixtures``: a classifier with ``network_options``, and an ensemble of two members that share a
backbone, in other class orders, weighted, pooled geometrically and calibrated.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune import Ensemble, ImageClassifier
from finetune.combining.soups import average_checkpoints
from finetune.networks.factory import network_spec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoints import VERSION, read_checkpoint, read_content

FIXTURES = Path(__file__).parent / "fixtures"
CLASSIFIER = FIXTURES / "format1_classifier.ckpt"
ENSEMBLE = FIXTURES / "format1_ensemble.ckpt"
THEN = Preprocessing(16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 0.9, "bilinear", "rounded")
OPTIONS = {"size": "tiny", "kernel_size": 1}


@pytest.fixture(scope="module")
def answers() -> dict[str, torch.Tensor]:
    found = load_file(FIXTURES / "format1_answers.safetensors")
    return {**found, "images": found["images"].float() / 255}


def test_they_are_of_format_1() -> None:
    assert VERSION > 1
    for path in (CLASSIFIER, ENSEMBLE):
        assert read_content(path)["finetune"]["version"] == 1


def test_a_classifier_answers_as_it_did(answers: dict[str, torch.Tensor]) -> None:
    classifier = ImageClassifier.from_checkpoint(CLASSIFIER)
    assert classifier.preprocessing == THEN
    with torch.inference_mode():
        torch.testing.assert_close(classifier(answers["images"]), answers["logits"])
    assert torch.equal(classifier.details["val"]["logits"], answers["logits"])


def test_its_network_is_found_by_name_and_options() -> None:
    spec = read_checkpoint(CLASSIFIER).network
    assert spec == network_spec("baseline_cnn", global_pool="max", **OPTIONS)
    assert spec != network_spec("baseline_cnn", **OPTIONS)


def test_an_ensemble_answers_as_it_did(answers: dict[str, torch.Tensor]) -> None:
    ensemble = Ensemble.from_file(ENSEMBLE)
    assert ensemble.preprocessings == (THEN,)
    logits = ensemble.member_logits({THEN: answers["images"]})
    found = ensemble.answer(logits)
    for name in ("member_probabilities", "probabilities"):
        torch.testing.assert_close(getattr(found, name).float(), answers[name])
    assert ensemble.roles == {"calibrate": ["0" * 16]}


def test_written_anew_they_hold_their_network(
    answers: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    soup = average_checkpoints([CLASSIFIER, CLASSIFIER])
    soup.save(tmp_path / "soup.ckpt")
    Ensemble.from_file(ENSEMBLE).save(tmp_path / "ensemble.ckpt")
    entries = [read_content(tmp_path / f"{name}.ckpt")["finetune"] for name in ("soup", "ensemble")]
    assert [entry["version"] for entry in entries] == [VERSION, VERSION]
    for entry in (entries[0], *entries[1]["members"]):
        assert entry["network"]["architecture"] == "baseline_cnn"
    again = Ensemble.from_file(tmp_path / "ensemble.ckpt")
    found = again.answer(again.member_logits({THEN: answers["images"]}))
    torch.testing.assert_close(found.probabilities.float(), answers["probabilities"])
