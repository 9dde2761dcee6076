"""Whatever a checkpoint's values are, it is loaded or it is one CheckpointError."""

import copy
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import Ensemble, ImageClassifier, average_checkpoints
from finetune.cli import main
from finetune.combining.calibrated_answer import Calibration
from finetune.combining.calibration import RejectRule, TemperatureFit
from finetune.combining.conformal import ConformalRule
from finetune.combining.members import ClassifierMember, TableMember
from finetune.combining.strangeness import Familiar
from finetune.combining.unknown import UnknownRule
from finetune.errors import CheckpointError
from finetune.training.checkpoint_schema import check_content
from finetune.training.checkpoints import ENTRY, plain

CLASSES = ["a", "b", "c"]
ODD = [None, -1, 0, math.nan, math.inf, 2**70, 1e308, "", "x" * 9, [], {}, [None], {"a": 1}, True]
CALIBRATION = Calibration(
    TemperatureFit(1.5, 1.0, 0.9, 10),
    RejectRule(0.5, 0.1, 0.2, 0.9),
    ConformalRule("thr", 0.1, math.inf, 10),
).to_dict()
UNKNOWN = UnknownRule(
    Familiar("mahalanobis", torch.randn(3, 64), torch.randn(2, 64), torch.zeros(3), 9.0),
    0.05,
    2.5,
    40,
    (0.9, 0.8, 1.0),
)
ROLES = {"pick": ["ab"], "calibrate": ["cd"]}


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    options = {"pretrained": False, "image_size": 32}
    return ImageClassifier(CLASSES, "baseline_cnn", **options).eval()


@pytest.fixture(scope="module")
def contents(
    classifier: ImageClassifier, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """A classifier's file and an ensemble's, with all that can stand in them."""
    data = {"root": "images", "val_fraction": 0.2, "seed": 0, "folds": None, "manifest": None}
    val = {"logits": torch.randn(4, 3), "labels": torch.tensor([0, 1, 2, 0]), "paths": list("wxyz")}
    classifier.details = {
        "data": data,
        "val": val,
        "fit": {"strategy": "head", "phase": 0},
        "calibration": CALIBRATION,
        "roles": ROLES,
        "unknown": UNKNOWN.to_entry(),
        "provenance": {"members": []},
    }
    one = {
        "state_dict": classifier.state_dict(),
        "hyper_parameters": plain(dict(classifier.hparams)),
        ENTRY: plain_entry(classifier),
    }
    table = TableMember("t.csv", CLASSES, ["p"], torch.tensor([[0.2, 0.3, 0.5]]).log())
    member = ClassifierMember(classifier, "m")
    inner = Ensemble([member, table], calibration=Calibration.from_dict(CALIBRATION), roles=ROLES)
    path = tmp_path_factory.mktemp("ensemble") / "e.ckpt"
    Ensemble([member, inner], unknown=UNKNOWN).save(path)
    ensemble = torch.load(path, weights_only=True)
    ensemble[ENTRY].pop("checksums", None)  # else each change is told by them already
    return {"classifier": one, "ensemble": ensemble}


def plain_entry(classifier: ImageClassifier) -> dict[str, Any]:
    entry = classifier.entry()
    tensors = {name: entry.pop(name) for name in ("val", "unknown")}
    return {**plain(entry), **tensors}


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value, containers included."""
    if at:
        yield at
    items = values.items() if isinstance(values, dict) else ()
    if isinstance(values, list):
        items = list(enumerate(values))[:2]
    for key, value in items:
        yield from places(value, (*at, key))


def mutated(content: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with one value replaced; the weights are shared."""
    changed = {**content, "state_dict": dict(content["state_dict"])}
    for part in ("hyper_parameters", ENTRY):
        changed[part] = copy.deepcopy(content[part])
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return changed


def outcome(content: dict[str, Any], path: Path) -> str:
    """Loaded, or refused in one line; anything else is raised."""
    torch.save(content, path)
    try:
        ensemble = Ensemble.from_file(path)
        with torch.no_grad():
            views = [torch.zeros(1, p.in_chans, 32, 32) for p in ensemble.preprocessings]
            if "ensemble" not in path.name:  # a table knows its own images only
                ensemble(*views)
    except CheckpointError as error:
        return "refused" if is_one_line(error) else "in a text that is no line"
    return "loaded"


def is_one_line(error: CheckpointError) -> bool:
    return "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("kind", ["classifier", "ensemble"])
def test_any_odd_value_is_taken_or_one_error(
    contents: dict[str, dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    content, path = contents[kind], tmp_path / f"{kind}.ckpt"
    parts = {part: content[part] for part in ("hyper_parameters", ENTRY)}
    assert outcome(content, path) == "loaded"
    taken, refused = [], 0
    for at, value in itertools.product(places(parts), ODD):
        changed = mutated(content, at, value)
        try:
            check_content(changed, ENTRY, "x.ckpt")
            taken.append((at, value))
        except CheckpointError as error:
            refused += is_one_line(error)
    assert refused > 5 * len(taken) > 0
    for at, value in random.Random(0).sample(taken, 25):
        assert outcome(mutated(content, at, value), path) in ("loaded", "refused"), (at, value)


# What passes by its type and cannot be built all the same.
UNBUILDABLE = {
    (ENTRY, "network", "architecture"): "no_such_network",
    ("hyper_parameters", "strategy"): "no-such-strategy",
    (ENTRY, "network", "arguments"): {"no_such_option": 1},
    ("hyper_parameters", "no_such_setting"): 1,
    (ENTRY, "network"): {"architecture": "hf-hub:stranger/network", "arguments": {}},
    (ENTRY, "backbone"): 5,
    (ENTRY, "preprocessing", "interpolation"): "no-such-filter",
    (ENTRY, "class_names"): ["a", "b", "c", "d"],
    (ENTRY, "class_names", 0): "b",
    (ENTRY, "preprocessing", "mean"): [0.5],
    (ENTRY, "version"): "text",
    (ENTRY, "kind"): ["classifier"],
    (ENTRY, "calibration", "fit", "further"): 1,
}


@pytest.mark.parametrize(("at", "value"), UNBUILDABLE.items(), ids=lambda at: str(at)[:40])
def test_what_cannot_be_built_is_one_error(
    contents: dict[str, dict[str, Any]], at: tuple[Any, ...], value: Any, tmp_path: Path
) -> None:
    changed = mutated(contents["classifier"], at, value)
    assert outcome(changed, tmp_path / "x.ckpt") == "refused"


@pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_a_network_of_a_file_fetches_and_reads_nothing(
    contents: dict[str, dict[str, Any]], name: str, tmp_path: Path
) -> None:
    at = ("hyper_parameters", "network_options")
    changed = mutated(contents["classifier"], at, {name: True})
    with pytest.raises(CheckpointError, match=name):
        check_content(changed, ENTRY, "x.ckpt")
    network = {"architecture": "resnet18", "arguments": {name: True}}
    changed = mutated(contents["classifier"], (ENTRY, "network"), network)
    with pytest.raises(CheckpointError, match=name):
        check_content(changed, ENTRY, "x.ckpt")


def test_further_keys_of_later_versions_are_accepted(
    contents: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for kind, content in contents.items():
        changed = mutated(content, (ENTRY, "later"), {"deep": [1, {"x": None}]})
        assert outcome(changed, tmp_path / f"{kind}.ckpt") == "loaded"


TENSORS = {
    "NaN": lambda t: torch.where(torch.arange(t.numel()).view_as(t) == 3, math.nan, t),
    "infinite": lambda t: torch.full_like(t, math.inf),
    "infinite in single precision": lambda t: t.double() * 0 + 1e300,
    "int8": lambda t: t.to(torch.int8),
    "int64": lambda t: t.long(),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "stride 0": lambda t: torch.zeros(1).expand(t.shape),
    "a huge claim": lambda t: torch.zeros(1).expand(10**9, 10**3),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "a list": lambda t: t.tolist(),
    "nothing": lambda t: None,
    "another shape": lambda t: t.flatten(),
}


@pytest.mark.parametrize("kind", ["classifier", "ensemble"])
@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_odd_weights_are_refused_by_every_reader(
    contents: dict[str, dict[str, Any]], kind: str, change: Any, tmp_path: Path
) -> None:
    content = contents[kind]
    changed = {**content, "state_dict": dict(content["state_dict"])}
    name = next(name for name in changed["state_dict"] if name.endswith(".weight"))
    changed["state_dict"][name] = change(changed["state_dict"][name])
    path = tmp_path / f"{kind}.ckpt"
    assert outcome(changed, path) == "refused"
    if kind == "classifier":
        with pytest.raises(CheckpointError):
            ImageClassifier.from_checkpoint(path)
        if change not in (TENSORS["infinite in single precision"], TENSORS["another shape"]):
            with pytest.raises(CheckpointError):
                average_checkpoints([path, path])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_kinds_of_floating_point_are_converted(
    contents: dict[str, dict[str, Any]], dtype: torch.dtype, tmp_path: Path
) -> None:
    content = contents["classifier"]
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in content["state_dict"].items()
    }
    torch.save({**content, "state_dict": tensors}, tmp_path / "x.ckpt")
    loaded = ImageClassifier.from_checkpoint(tmp_path / "x.ckpt").state_dict()
    for name, tensor in content["state_dict"].items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensors[name].to(tensor.dtype))


ANSWERS = {
    "logits": [torch.randn(3, 3), torch.randn(4, 2), torch.randn(4), torch.full((4, 3), math.nan)],
    "labels": [torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, -1, 0]), torch.zeros(4), [0, 1]],
    "paths": [["w"], None, [1, 2, 3, 4]],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in ANSWERS.items() for v in vs])
def test_answers_to_the_validation_fit_together(
    contents: dict[str, dict[str, Any]], key: str, value: Any, tmp_path: Path
) -> None:
    changed = mutated(contents["classifier"], (ENTRY, "val", key), value)
    assert outcome(changed, tmp_path / "x.ckpt") == "refused"


def test_a_verb_answers_odd_weights_with_one_line(
    contents: dict[str, dict[str, Any]], tmp_path: Path, colour_folder: Path, capsys: Any
) -> None:
    content = contents["classifier"]
    tensors = dict(content["state_dict"])
    name = next(name for name in tensors if name.endswith(".weight"))
    tensors[name] = torch.full_like(tensors[name], math.nan)
    path = str(tmp_path / "nan.ckpt")
    torch.save({**content, "state_dict": tensors}, path)
    data = f"--data.root={colour_folder}"
    image = str(next(colour_folder.rglob("*.png")))
    for call in (
        ["predict", path, image],
        ["inspect", path],
        ["explain", path, image, "--output=x.png"],
        ["export", path, "--format=torch", "--output=x.pt2"],
        ["ensemble", path, path, "--output=x.ckpt"],
        ["average", path, path, "--output=x.ckpt"],
        ["calibrate", path, data, "--output=x.ckpt"],
        ["validate", f"--ckpt_path={path}", data],
        ["test", f"--ckpt_path={path}", data],
        ["fit", f"--ckpt_path={path}", data],
    ):
        assert main(call) == 1, call
        error = capsys.readouterr().err
        assert "NaN or infinity" in error, call
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("hyper_parameters", "no_such"), 1),
        (("hyper_parameters", "strategy"), "none"),
        ((ENTRY, "network", "architecture"), "none"),
        ((ENTRY, "network", "arguments"), {"a": 1}),
    ],
)
@pytest.mark.parametrize("verb", ["validate", "fit", "predict"])
def test_a_verb_answers_settings_that_build_nothing_with_one_line(
    contents: dict[str, dict[str, Any]],
    at: tuple[str, ...],
    value: Any,
    verb: str,
    tmp_path: Path,
    colour_folder: Path,
    capsys: Any,
) -> None:
    path = tmp_path / "x.ckpt"
    changed = mutated(contents["classifier"], at, value)
    for name in ("calibration", "roles"):  # what is plain goes another way
        del changed[ENTRY][name]
    torch.save(changed, path)
    data = [f"--data.root={colour_folder}", f"--ckpt_path={path}"]
    call = [str(path), str(next(colour_folder.rglob("*.png")))] if verb == "predict" else data
    assert main([verb, *call]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "in a way that it should not" not in error
