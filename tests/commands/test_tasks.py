"""A contract over the tasks: what every command does for a class, for several labels, a number."""

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import finetune
from finetune.cli import VERBS, main
from finetune.combining.ensemble import Ensemble
from finetune.prediction.predictor import load
from finetune.reporting.csv_files import write_predictions
from finetune.reporting.sources import load_source
from finetune.serving import server
from finetune.spec.choices import TaskName
from finetune.tables.reading import read_table
from finetune.tasks.multilabel import offsets
from finetune.training.checkpoints import ENTRY, read_checkpoint, read_content
from tests.commands.verbs_of_tasks import NO_TASK, calls
from tests.own_process import killed_at_rename

SMALL = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--model.strategy=head-then-all",
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "--data.cache=off",
    "--data.num_workers=0",
    "--data.val_fraction=0.4",
    "--data.test_fraction=0.2",
)
NAMES = ("blue", "red", "striped")
TASKS = ("multiclass", "multilabel", "regression")
LEADING = {"multiclass": "accuracy", "multilabel": "map", "regression": "mae"}
NUMBERS = ("--data.task=regression",)
ALL = ("--data.val_fraction=0", "--data.test_fraction=0")
RISING = "".join(f"{{{i}}},{i}\n" for i in range(8))
SPREAD = "".join(f"{{{i}}},{1e7 + i}\n" for i in range(8))
REFUSED = (1, 2)  # by what is in a file, or by what was typed


def write_images(folder: Path, number: int = 40) -> None:
    """Noisy images, and manifests of them; some of the labels are not known, numbers are wide."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(number):
        has = generator.random(3) < (0.4, 0.5, 0.3)
        pixels = generator.integers(0, 160, (24, 24, 3))
        pixels[..., 2] += 60 * has[0]
        pixels[..., 0] += 60 * has[1]
        pixels[::4] = pixels[::4] // (3 if has[2] else 1)
        name = f"{index:02}.png"
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / "images" / name)
        marks = [each for each, having in zip(NAMES, has, strict=True) if having]
        marks += ["?striped"] if index % 9 == 4 and not has[2] else []
        rows.append((name, "|".join(marks), NAMES[int(has[0])], 1e4 + 30 * pixels.mean()))
    for column, task in enumerate(("multilabel", "multiclass", "regression"), start=1):
        with (folder / f"{task}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "weight" if task == "regression" else "label"))
            writer.writerows((row[0], row[column]) for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write_images(made)
    return made


@pytest.fixture(scope="module", params=TASKS)
def run(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A fit of two phases by a manifest."""
    task: str = request.param
    options = (f"--data.root={folder / 'images'}", *manifest_of(folder, task))
    assert main(["fit", *options, *SMALL, f"--runs={folder / 'runs'}", f"--name={task}"]) == 0
    return folder / "runs" / f"{task}-1"


def manifest_of(folder: Path, task: str) -> list[str]:
    """A number an image has to be asked for."""
    asked = ["--data.task=regression"] if task == "regression" else []
    return [f"--data.manifest={folder / task}.csv", *asked]


def best(run: Path) -> str:
    return str(run / "checkpoints" / "best.ckpt")


def images(run: Path) -> str:
    return str(run.parents[1] / "images")


def name_of(run: Path) -> str:
    return run.name.removesuffix("-1")


def test_a_fit_says_and_keeps_its_task(run: Path) -> None:
    checkpoint = read_checkpoint(best(run))
    assert checkpoint.task.name == name_of(run)
    assert checkpoint.details["data"]["task"] == name_of(run)
    figures = json.loads((run / "metrics.json").read_text())["val"]
    assert set(checkpoint.task.figure_names(3)) <= set(figures)
    assert (checkpoint.class_names == ("weight",)) == (name_of(run) == "regression")
    assert (run / "batch.png").is_file()
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt"}


def test_it_is_tested_and_validated_on_its_own_images(run: Path) -> None:
    data = [f"--data.root={images(run)}", "--trainer.accelerator=cpu", "--data.num_workers=0"]
    kept = json.loads((run / "metrics.json").read_text())["val"]
    for verb, stage in (("validate", "val"), ("test", "test")):
        assert main([verb, "--ckpt_path", best(run), *data]) == 0
        figures = json.loads((run / "metrics.json").read_text())[stage]
        decides = read_checkpoint(best(run)).task.deciding
        assert figures[decides] > 0
        if stage == "val":
            assert figures[decides] == pytest.approx(kept[decides], abs=1e-4, rel=1e-5)
        if name_of(run) == "regression":
            assert figures["mae_low"] <= figures["mae"] <= figures["mae_high"]


def test_predictions_name_what_the_thresholds_say(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "answers.csv"
    assert main(["predict", best(run), images(run), "--output", str(table)]) == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    predictions = load(best(run))(images(run), num_workers=0)
    if name_of(run) == "regression":
        assert rows[0].keys() == {"path", "label", "prediction"}
        numbers = predictions.logits[:, 0].tolist()
        assert [float(row["prediction"]) for row in rows] == pytest.approx(numbers, rel=1e-8)
        assert [float(each) for each in predictions.labels] == pytest.approx(numbers, rel=1e-5)
        return
    assert [row["prediction"] for row in rows] == predictions.labels
    if name_of(run) == "multiclass":
        return
    assert predictions.thresholds is not None
    bounds = dict(zip(predictions.class_names, predictions.thresholds, strict=True))
    for row in rows:
        named = {name for name in NAMES if float(row[f"p:{name}"]) > bounds[name]}
        assert set(row["prediction"].split("|")) - {""} == named


def test_members_are_combined_calibrated_and_exported(run: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    # Not the best one where it has learnt from all: its averages have nothing held out.
    others = sorted(str(path) for path in (run / "checkpoints").glob("*.ckpt"))[-2:]
    data = [f"--data.root={images(run)}", "--data.num_workers=0"]
    one, all_of = str(tmp_path / "average.ckpt"), str(tmp_path / "ensemble.ckpt")
    assert main(["average", *others, "--output", one]) == 0
    options, rule = ["--select=greedy", "--calibrate"], []
    if name_of(run) == "regression":
        options, rule = ["--conformal=0.3"], ["--conformal=0.3"]
    assert main(["ensemble", *others, *data, *options, "--output", all_of]) == 0
    calibrated = str(tmp_path / "calibrated.ckpt")
    several = name_of(run) == "multilabel"
    if several:
        rule = ["--scaling=label", "--wanted-precision=0.8", "--conformal=0.2"]
    assert main(["calibrate", one, *data, *rule, "--output", calibrated]) == 0
    kept = Ensemble.from_file(calibrated).calibration
    assert kept is not None
    assert (kept.scaling is None, kept.conformal is None) == (not several, not several)
    for path in (one, all_of, calibrated):
        model = Ensemble.from_file(path)
        assert model.task.name == name_of(run)
        assert (model.thresholds is None) == (name_of(run) != "multilabel")
        assert main(["test", f"--ckpt_path={path}", *data, "--runs", str(tmp_path / "r")]) == 0
    for form in ("torch", "safetensors"):
        output = tmp_path / ("graph.pt2" if form == "torch" else "folder")
        assert main(["export", all_of, f"--format={form}", "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("s on random images") == 2
    (described,) = (tmp_path / "folder").glob("*.json")
    noted = json.loads(described.read_text()).get("thresholds")
    thresholds = Ensemble.from_file(all_of).thresholds
    assert noted == (None if thresholds is None else pytest.approx(thresholds))
    if name_of(run) == "regression":
        table = tmp_path / "a.csv"
        assert main(["predict", all_of, images(run), "--output", str(table)]) == 0
        with table.open(newline="") as file:
            kept = ("lower", "prediction", "upper")
            rows = [{name: float(row[name]) for name in kept} for row in csv.DictReader(file)]
        assert len({round(row["upper"] - row["lower"], 2) for row in rows}) == 1
        assert all(row["lower"] < row["prediction"] < row["upper"] for row in rows)


def test_heads_on_one_backbone_answer_together(run: Path, tmp_path: Path) -> None:
    data = [f"--data.root={images(run)}", "--data.num_workers=0"]
    output = tmp_path / "heads.ckpt"
    assert main(["ensemble", best(run), *data, "--heads=3", f"--output={output}"]) == 0
    ensemble = Ensemble.from_file(output)
    assert (len(ensemble.parts), ensemble.task.name) == (3, name_of(run))
    alone, together = (load(path)(images(run), num_workers=0) for path in (best(run), output))
    assert float(together.member_probabilities.std(dim=0).max()) > 0
    # Each learned from a sample of the same images: together they say nearly what one of all says.
    near = np.corrcoef(alone.logits.flatten(), together.logits.flatten())[0, 1]
    assert near > 0.5


def test_a_report_has_the_figures_of_its_task_and_runs_are_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data.root={images(run)}", "--trainer.accelerator=cpu", "--data.num_workers=0"]
    if not (run / "report").is_dir():
        assert main(["test", "--ckpt_path", best(run), *data]) == 0
    task = read_checkpoint(best(run)).task
    drawn = {path.stem for path in (run / "report" / "figures").iterdir()}
    own = {"multiclass": "confusion", "multilabel": "co_occurrence", "regression": "residuals"}
    assert drawn & set(own.values()) == {own[task.name]}
    told = json.loads((run / "report" / "metrics.json").read_text())
    kept = json.loads((run / "metrics.json").read_text())["test"]
    for figure in task.figure_names(3):
        if figure in told:
            assert told[figure] == pytest.approx(kept[figure], abs=1e-12), figure
    again = load_source(run)
    assert again.details.stage == "test"
    lead = again.evaluation.leading[0]
    assert lead.value == pytest.approx(kept[LEADING[task.name]])
    assert again.evaluation.class_names == read_checkpoint(best(run)).class_names
    page = tmp_path / "page.html"
    table = str(tmp_path / "other.csv")
    write_predictions(Path(table), again.evaluation)
    capsys.readouterr()
    assert main(["compare", str(run), table, "--output", str(page)]) == 0
    said = capsys.readouterr().out
    nothing = {
        "multiclass": "0.0 points [",
        "multilabel": "0.0 points of mAP",
        "regression": "0 of MAE",
    }
    assert f"not distinguishable: {nothing[task.name]}" in said
    assert main(["report", best(run), "--output", str(tmp_path / "val.html")]) == 0
    text = (tmp_path / "val.html").read_text()
    assert ("thresholds were chosen on these images" in text) == (task.name == "multilabel")


def test_what_is_named_is_explained(run: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    image, output = f"{images(run)}/00.png", tmp_path / "e.png"
    capsys.readouterr()
    asked = [] if name_of(run) == "regression" else ["--label", "striped"]
    arguments = ["explain", best(run), image, *asked, "--output", str(output)]
    assert main(arguments) == (2 if name_of(run) == "multiclass" else 0)
    line = capsys.readouterr().out.partition("\n")[0].replace(",", "").split()
    named = load(best(run))([image], num_workers=0).labels[0]
    if name_of(run) == "multilabel":
        assert {*named.split("|"), "striped"} - {""} <= set(line)
    elif name_of(run) == "regression":
        assert {"raises", "lowers", named} <= set(line)


def test_the_likeliest_are_named_on_request(run: Path, tmp_path: Path) -> None:
    if name_of(run) == "regression":
        return
    table = tmp_path / "t.csv"
    assert main(["predict", best(run), images(run), "--topk=2", "--output", str(table)]) == 0
    with table.open(newline="") as file:
        (row, *_) = csv.DictReader(file)
    if name_of(run) == "multilabel":
        first, second = (float(row[f"top_{rank}_probability"]) for rank in (1, 2))
        assert first >= second
        assert float(row[f"p:{row['top_1']}"]) == pytest.approx(first)
        assert row["label"] == "?"
        assert not read_table(table).labelled.any()
    else:
        assert row["prediction_2"]


def test_thresholds_belong_to_the_calibrated_answer(folder: Path, run: Path) -> None:
    if name_of(run) != "multilabel":
        return
    checkpoint = read_checkpoint(best(run))
    val = checkpoint.details["val"]
    thresholds = checkpoint.task.thresholds(val["logits"], val["labels"])
    predictor = load(best(run))
    answers = predictor([Path(images(run)) / name for name in val["paths"]], num_workers=0)
    assert answers.thresholds == pytest.approx(thresholds)
    margins = answers.logits.double() - offsets(thresholds, 3)
    assert answers.labels == checkpoint.task.named(margins, checkpoint.class_names)


def test_a_fit_that_is_killed_ends_as_one_that_was_not(run: Path, tmp_path: Path) -> None:
    manifest = manifest_of(run.parents[1], name_of(run))
    options = [f"--data.root={images(run)}", *manifest, *SMALL]
    arguments = ["fit", *options, f"--name={name_of(run)}", f"--runs={tmp_path}"]
    assert killed_at_rename(3, arguments) == -signal.SIGKILL
    again = tmp_path / run.name
    assert main(["fit", "--resume", str(again)]) == 0
    for name in ("best.ckpt", "last.ckpt"):
        whole, resumed = (
            read_content(each / "checkpoints" / name)["state_dict"] for each in (run, again)
        )
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_every_verb_answers_or_says_why_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "run", lambda *arguments: None)
    home, task = run.parents[1], name_of(run)
    new = home / "new"
    new.mkdir(exist_ok=True)
    for index, image in enumerate(sorted((home / "images").iterdir())[:4]):
        ImageOps.mirror(Image.open(image)).save(new / f"new{index}.png")
    fit = [f"--data.root={images(run)}", *manifest_of(home, task), *SMALL]
    seen, odd = set(NO_TASK), []
    for call in calls(run, tmp_path, fit):
        seen.add(call.arguments[0])
        there = {path for path in tmp_path.rglob("*") if path.is_file()}
        capsys.readouterr()
        code, said = main(call.arguments), capsys.readouterr()
        last = said.err.strip().splitlines()[-1:]
        expected = call.refused.get(task)
        if expected is None:
            odd += [(call.arguments, last)] if code or call.says not in said.out else []
        elif code not in REFUSED or expected not in "".join(last):
            odd.append((call.arguments, last))
        elif {path for path in tmp_path.rglob("*") if path.is_file()} != there:
            odd.append((call.arguments, ["it is refused, but has written"]))
    assert not odd
    assert seen == set(VERBS)


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ((), "{0},a|b\n{1},a\n{2},b|?c\n{3},\n", "found 'c' only as not known"),
        (("--data.balanced=true",), "{0},a|b\n{1},a\n{2},a\n{3},b\n", "--data.balanced false"),
        (
            ("--model.class_weights=balanced",),
            "{0},a|b\n{1},a\n{2},a\n{3},b\n",
            "weights none",
        ),
        (NUMBERS, "{0},1\n{1},2\n{2},three\n{3},4\n", "a number such as 31.5 in line 4 of"),
        (NUMBERS, "{0},1\n{1},2\n{2},3\n{3},4\n", "at least 5 training images"),
        ((*NUMBERS, *ALL), "".join(f"{{{i}}},7\n" for i in range(8)), "different numbers"),
        ((*NUMBERS, *ALL), SPREAD, "take a common amount off"),
        ((*NUMBERS, *ALL, "--data.balanced=true"), RISING, "there are no classes"),
        ((*NUMBERS, *ALL, "--model.class_weights=balanced"), RISING, "there are no classes"),
        ((*NUMBERS, *ALL, "--model.label_smoothing=0.1"), RISING, "leave them out"),
        ((*NUMBERS, *ALL, "--model.mixup_alpha=0.2"), RISING, "leave them out"),
        ((*NUMBERS, "--monitor=val/accuracy"), RISING, "one of val/loss, val/mae"),
    ],
)
def test_bad_input_is_one_clear_line(  # type: ignore[no-untyped-def]
    folder: Path, tmp_path: Path, capsys, options: tuple[str, ...], rows: str, message: str
) -> None:
    manifest = tmp_path / "m.csv"
    paths = [folder / "images" / f"{index:02}.png" for index in range(8)]
    manifest.write_text("path,label\n" + rows.format(*paths))
    data = [f"--data.root={folder / 'images'}", f"--data.manifest={manifest}"]
    assert main(["fit", *data, *SMALL, *options]) in REFUSED
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not any((tmp_path / "runs").glob("*/checkpoints"))


# Cells that nothing can be made of, whatever was learned, and those that are strange to a fit.
WRONG = {
    "multiclass": {"": "found none"},
    "multilabel": {"?blue|?red|?striped": "only labels with", "red|": "where one is missing"},
    "regression": {
        "tall": "found 'tall'",
        "31,5": "found '31,5'",
        "nan": "found 'nan'",
        "-inf": "found '-inf'",
        "": "found an empty cell",
    },
}
STRANGE = {
    "multiclass": {"green": "'green'", "red|blue": "'red|blue'"},
    "multilabel": {"red|green": "'green'"},
    "regression": {},
}


def test_wrong_cells_are_one_clear_line_for_all_verbs_that_read_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, manifest = name_of(run), tmp_path / "m.csv"
    root, written = f"--data.root={images(run)}", f"--output={tmp_path / 'written'}"
    listed = f"--data.manifest={manifest}"
    asked = f"--data.task={task}"
    made = [best(run), root, listed, f"{written}.ckpt"]
    of_any = [
        ["check", images(run), listed, asked],
        ["split", images(run), listed, asked, f"{written}.csv"],
        ["fit", root, listed, asked, *SMALL, f"--runs={tmp_path / 'runs'}"],
    ]
    of_fits = [
        ["validate", "--ckpt_path", best(run), root, listed],
        ["test", "--ckpt_path", best(run), root, listed],
        ["calibrate", *made, "--conformal=0.3"],
        ["ensemble", *made, "--heads=2"],
        ["average", str(run / "checkpoints" / "last.ckpt"), *made, "--method=greedy"],
    ]
    column = "weight" if task == "regression" else "label"
    right = {"multiclass": "red", "multilabel": "red|blue|striped", "regression": "5"}[task]
    before = (run / "metrics.json").read_bytes()
    for cell, message in {**WRONG[task], **STRANGE[task]}.items():
        rows = [("path", column, "split"), ("00.png", right, "train"), ("01.png", cell, "val")]
        with manifest.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        for arguments in of_fits if cell in STRANGE[task] else [*of_any, *of_fits]:
            capsys.readouterr()
            assert main(arguments) in REFUSED, arguments
            said = capsys.readouterr()
            line = (said.err.strip() or said.out.strip()).splitlines()[-1]
            assert message in line, (arguments, said)
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]
    assert (run / "metrics.json").read_bytes() == before


def test_label_columns_are_known_to_the_verbs_after_the_fit(folder: Path, tmp_path: Path) -> None:
    with (folder / "multilabel.csv").open(newline="") as file:
        rows = [(row["path"], row["label"].split("|")) for row in csv.DictReader(file)]
    columns = tmp_path / "columns.csv"
    with columns.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "split", *NAMES))
        for index, (path, has) in enumerate(rows):
            marks = ["" if f"?{name}" in has else int(name in has) for name in NAMES]
            writer.writerow((path, ("train", "train", "val", "test")[index % 4], *marks))
    data = [f"--data.root={folder / 'images'}", f"--data.manifest={columns}"]
    named = '--data.label_columns=["blue", "red", "striped"]'
    quick = [*(each for each in SMALL if "strategy" not in each and "fraction" not in each)]
    runs = [f"--runs={tmp_path}", "--name=c"]
    options = [*data, named, *quick, "--model.strategy=head", "--model.negative_gamma=2"]
    assert main(["fit", *options, *runs]) == 0
    best = str(tmp_path / "c-1" / "checkpoints" / "best.ckpt")
    checkpoint = read_checkpoint(best)
    assert (checkpoint.task.name, checkpoint.class_names) == ("multilabel", NAMES)
    assert main(["test", "--ckpt_path", best, *data, "--trainer.accelerator=cpu"]) == 0
    assert len(read_table(tmp_path / "c-1" / "report" / "predictions.csv").paths) == 10
    again = str(tmp_path / "again.ckpt")
    assert main(["calibrate", best, *data, "--share=all", "--output", again]) == 0


# So few images are said to be few, as they are.
@pytest.mark.filterwarnings("ignore:Fitted a temperature on:UserWarning")
@pytest.mark.parametrize("task", TASKS)
def test_from_python(folder: Path, tmp_path: Path, task: TaskName) -> None:
    run = finetune.fit(
        folder / "images",
        manifest=str(folder / f"{task}.csv"),
        task="regression" if task == "regression" else "auto",
        backbone="test_resnet",
        pretrained=False,
        image_size=32,
        strategy="head",
        cache="off",
        num_workers=0,
        accelerator="cpu",
        runs=str(tmp_path / "runs"),
        quiet=True,
    )
    labels = run.predictor()([folder / "images" / "00.png"]).labels
    if task == "regression":
        assert 1e4 < float(labels[0]) < 2e4
    else:
        assert set(labels[0].split("|")) <= {*NAMES, ""}
    entry = read_content(run.best)[ENTRY]
    assert entry["task"] == task
    data, given = folder / "images", {"num_workers": 0, "share": "all", "quiet": True}
    made = [tmp_path / f"{name}.ckpt" for name in ("calibrated", "heads", "average", "copy")]
    made[3].write_bytes(run.best.read_bytes())
    figures = run.test(quiet=True)
    finetune.calibrate(run.best, data, conformal=0.2, output=made[0], **given)
    finetune.ensemble(run.best, data=data, heads=2, output=made[1], **given)
    finetune.average([run.best, made[3]], output=made[2], quiet=True)
    for path in made:
        assert finetune.load(path)([data / "00.png"], num_workers=0).task.name == task
    exported = finetune.export(made[1], tmp_path / "m.pt2", format="torch")
    assert exported.greatest_difference is not None
    assert exported.greatest_difference < 1e-4
    report = finetune.report(run.folder, output=tmp_path / "r.html", quiet=True)
    assert report.is_file()
    table = run.folder / "report" / "predictions.csv"
    board = finetune.compare([run.folder, table], quiet=True)
    assert board.pairs[0].p_value == 1
    assert board.pairs[0].figure.value == pytest.approx(figures[LEADING[task]])
    (explained,) = finetune.explain(
        run.best, data / "00.png", output=tmp_path / "e.png", quiet=True
    )
    assert len(explained) >= (2 if task == "regression" else 1)
