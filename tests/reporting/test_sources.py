"""Runs, checkpoints and CSVs as evaluations."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.errors import DataError, UsageError
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.result import Evaluation
from finetune.reporting.csv_files import write_predictions
from finetune.reporting.embeddings import embed, listened_to
from finetune.reporting.sources import load_source, load_sources, merge_folds
from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoints import describe, write_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.features.extract import live_features
from finetune.training.features.recorded import recorded_features

Make = Callable[..., Evaluation]
NAMES = ["ant", "bee"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run before its test: settings, curves, split, and a checkpoint with validation answers."""
    folder = tmp_path / "runs" / "resnet-1"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("model:\n  backbone: test_resnet\ndata:\n  root: photos\n")
    (folder / "metrics.csv").write_text("epoch,step,val/loss\n0,3,0.7\n1,7,0.5\n")
    (folder / "split.csv").write_text("path,label,split\n1,ant,train\n2,ant,train\n3,bee,val\n")
    (folder / "bad_images.csv").write_text("path,problem,remedy\nx.jpg,truncated,copy again\n")
    val = {
        "logits": torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]),
        "labels": torch.tensor([0, 1, 1]),
        "paths": ["1.jpg", "2.jpg", "3.jpg"],
    }
    write_checkpoint(
        folder / "checkpoints" / "best.ckpt",
        state_dict={"network.weight": torch.zeros(5, 2), "network.count": torch.tensor(3)},
        hyper_parameters={},
        entry=describe(
            ("ant", "bee"),
            "test_resnet",
            Preprocessing(),
            network=NetworkSpec("test_resnet"),
            val=val,
        ),
    )
    return folder


def test_a_run_before_its_test_is_judged_by_validation(run: Path) -> None:
    source = load_source(run)
    assert (source.name, source.details.stage, source.title) == (
        "resnet-1",
        "val",
        "resnet-1 (val)",
    )
    assert source.evaluation.accuracy == pytest.approx(2 / 3)
    assert source.evaluation.paths == ("1.jpg", "2.jpg", "3.jpg")
    assert source.columns["parameters"] == 10
    assert source.columns["backbone"] == "test_resnet"
    details = source.details
    assert details.root == Path("photos")
    assert details.learning_curves == {"val/loss": [(1.0, 0.7), (2.0, 0.5)]}
    assert details.class_counts == {"train": {"ant": 2}, "val": {"bee": 1}}
    assert details.settings is not None
    assert details.settings["model"] == {"backbone": "test_resnet"}
    assert details.findings is not None
    assert details.findings[0].remedy == "copy again"


def test_a_tested_run_is_judged_by_its_test(run: Path, make_evaluation: Make) -> None:
    evaluation = make_evaluation(25, NAMES)
    write_predictions(run / "predictions.csv", evaluation)
    source = load_source(run)
    assert source.details.stage == "test"
    assert source.evaluation.accuracy == evaluation.accuracy
    link = run.parent / "latest"
    link.symlink_to(run.name)
    assert load_source(link).name == "resnet-1"


def test_the_times_of_a_run_are_those_that_it_wrote_down(run: Path) -> None:
    assert not {"fit minutes", "ms an image"} & set(load_source(run).columns)
    stages = {"fit": {"seconds": 90, "finished": True}, "test": {"ms_per_image": 4.5}}
    (run / "metrics.json").write_text(json.dumps(stages))
    columns = load_source(run).columns
    assert (columns["fit minutes"], columns["ms an image"]) == (1.5, 4.5)


def test_a_checkpoint_and_a_table_alone(run: Path, tmp_path: Path, make_evaluation: Make) -> None:
    source = load_source(run / "checkpoints" / "best.ckpt")
    assert source.evaluation.accuracy == pytest.approx(2 / 3)
    assert source.weights == run / "checkpoints" / "best.ckpt"
    write_predictions(tmp_path / "other tool.csv", make_evaluation(9, NAMES))
    table = load_source(tmp_path / "other tool.csv", root=tmp_path)
    assert (table.title, table.details.root) == ("other tool", tmp_path)


def test_rows_without_label_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("path,label,p:ant,p:bee\nx,,0.5,0.5\ny,bee,0.1,0.9\n")
    assert load_source(path).evaluation.paths == ("y",)
    path.write_text("path,label,p:ant,p:bee\nx,,0.5,0.5\n")
    with pytest.raises(DataError, match="expected labels"):
        load_source(path)


def test_a_checkpoint_in_a_run_knows_where_its_images_were(run: Path) -> None:
    assert load_source(run / "checkpoints" / "best.ckpt").details.root == Path("photos")


def test_what_cannot_be_judged_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found nothing at"):
        load_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found neither"):
        load_source(tmp_path / "empty")
    best = run / "checkpoints" / "best.ckpt"
    entry = describe(
        ("ant", "bee"), "test_resnet", Preprocessing(), network=NetworkSpec("test_resnet")
    )
    write_checkpoint(best, state_dict={}, hyper_parameters={}, entry=entry)
    with pytest.raises(DataError, match="finetune test --ckpt_path"):
        load_source(best)


def test_equal_names_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "resnet-1"
    other.parent.mkdir()
    run.rename(other)
    twin = tmp_path / "runs" / "resnet-1"
    (twin / "checkpoints").mkdir(parents=True)
    content = (other / "checkpoints" / "best.ckpt").read_bytes()
    (twin / "checkpoints" / "best.ckpt").write_bytes(content)
    assert list(load_sources([str(other), str(twin)])) == [str(other), str(twin)]
    with pytest.raises(UsageError, match="found one twice"):
        load_sources([str(other), str(other)])


def test_folds_become_one_evaluation(tmp_path: Path) -> None:
    one = evaluate([0, 1], np.eye(2)[[0, 0]] * 0.8 + 0.1, ["ant", "bee"], ["1", "2"])
    two = evaluate([0, 1], np.eye(2)[[0, 1]] * 0.8 + 0.1, ["bee", "ant"], ["3", "4"])
    for name, evaluation in (("one", one), ("two", two)):
        write_predictions(tmp_path / f"{name}.csv", evaluation)
    sources = load_sources([str(tmp_path / "one.csv"), str(tmp_path / "two.csv")])
    merged = merge_folds(sources).evaluation
    assert merged.fold_accuracies == (0.5, 1.0)
    assert merged.accuracy == 0.75
    assert [merged.class_names[label] for label in merged.labels] == ["ant", "bee", "bee", "ant"]
    np.testing.assert_allclose(merged.probabilities[2], [0.1, 0.9])
    with pytest.raises(UsageError, match="held out twice"):
        merge_folds({"a": sources["one"], "b": sources["one"]})
    write_predictions(tmp_path / "x.csv", evaluate([0], [[1, 0]], ["ant", "wasp"], ["9"]))
    with pytest.raises(UsageError, match="same classes"):
        merge_folds({"a": sources["one"], "x": load_source(tmp_path / "x.csv")})


def test_embeddings_are_what_enters_the_final_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = ImageClassifier(NAMES, "test_resnet", pretrained=False, image_size=32).eval()
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    paths = [f"{index}.png" for index in range(5)]
    embeddings = torch.from_numpy(embed(classifier, paths, root=tmp_path))
    assert len(embeddings) == 5
    head = classifier.network.get_classifier()
    answer = head(embeddings)
    from finetune.prediction import predict

    files = [tmp_path / path for path in paths]
    with recorded_features(listened_to(classifier)) as features:
        predictions = predict(classifier, files, num_workers=0, batch_size=2)
    torch.testing.assert_close(answer.softmax(dim=-1), predictions.probabilities)
    torch.testing.assert_close(torch.cat(features), embeddings)
    assert not head._forward_pre_hooks


def test_the_features_of_an_ensemble_are_those_of_its_weightiest_classifier() -> None:
    torch.manual_seed(0)
    one = ImageClassifier(NAMES, "test_resnet", pretrained=False, image_size=32).eval()
    two = ImageClassifier(NAMES, "test_vit", pretrained=False, image_size=32).eval()
    twin = copy.deepcopy(two)  # shares its backbone, which then runs once for both
    with torch.no_grad():
        twin.network.get_classifier().weight.add_(1)
    members = [ClassifierMember(c, str(i)) for i, c in enumerate((one, two, twin))]
    ensemble = Ensemble(members, coefficients=[0.3, 0.3, 0.4])
    images = torch.rand(4, 3, 32, 32)
    views = dict.fromkeys(ensemble.preprocessings, images)
    with recorded_features(listened_to(ensemble)) as features:
        ensemble.member_probabilities(views)
    torch.testing.assert_close(torch.cat(features), live_features(two, images))
    with recorded_features(listened_to(object())) as nothing:
        assert nothing == []


def test_metrics_json_of_a_source_is_plain(run: Path) -> None:
    figures = load_source(run).evaluation.to_dict()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_calibrated_checkpoint_is_judged_calibrated(tmp_path: Path) -> None:
    val = {
        "logits": torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
        "labels": torch.tensor([0, 1]),
        "paths": ["1.jpg", "2.jpg"],
    }
    fit = {"temperature": 2.0, "nll_before": 0.2, "nll_after": 0.1, "images": 2}
    write_checkpoint(
        tmp_path / "sure.ckpt",
        state_dict={},
        hyper_parameters={},
        entry=describe(
            ("ant", "bee"),
            "test_resnet",
            Preprocessing(),
            network=NetworkSpec("test_resnet"),
            val=val,
            calibration={"fit": fit},
        ),
    )
    found = load_source(tmp_path / "sure.ckpt").evaluation.probabilities
    np.testing.assert_allclose(found, (val["logits"] / 2).double().softmax(-1), rtol=1e-12)
