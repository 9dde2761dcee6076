"""Every verb as a user of any task calls it, and what is refused, since it means nothing there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file

from finetune.networks.factory import create_network

LABELS, NUMBERS = "multilabel", "regression"


@dataclass(frozen=True)
class Call:
    """A call, by task the words of its refusal, and else what it says.

    Tasks that are not named there have it.
    """

    arguments: list[str]
    refused: Mapping[str, str] = field(default_factory=dict)
    says: str = ""


def calls(run: Path, out: Path, fit: list[str]) -> Iterator[Call]:
    """All verbs about one run, in an order in which later ones read what earlier ones wrote.

    Args:
        run: with ``best.ckpt`` and ``last.ckpt``; its images and manifest lie two folders up.
        out: an empty folder.
        fit: the options of a short fit of the same images.
    """
    task = run.name.removesuffix("-1")
    best, last = (str(run / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    home = run.parents[1]
    images, listed = str(home / "images"), [f"--data.manifest={home / task}.csv"]
    asked = [*listed, f"--data.task={task}"]
    data = [f"--data.root={images}", "--data.num_workers=0"]
    one_number = {NUMBERS: "for numbers"}
    labels_alone = {NUMBERS: "Expected --conformal A alone", "multiclass": "several labels"}

    def to(name: str) -> str:
        return f"--output={out / name}"

    yield Call(["check", images, *asked])
    yield Call(["split", images, *asked, "--folds=2", to("folds.csv")])
    yield Call(["inspect", best])
    yield Call(["validate", f"--ckpt_path={best}", *data, "--trainer.accelerator=cpu"])
    yield Call(["test", f"--ckpt_path={best}", *data, "--trainer.accelerator=cpu"])
    table = str(run / "report" / "predictions.csv")
    yield Call(["predict", best, images, to("answers.csv")])
    yield Call(["predict", best, images, "--test-time-augmentation=2", to("views.jsonl")])
    yield Call(["predict", best, images, "--topk=2", to("likeliest.csv")], one_number)

    averaged = ["average", last, last, *data, "--method=greedy"]
    yield Call([*averaged, to("average.ckpt")])
    yield Call([*averaged, "--metric=accuracy", to("by_accuracy.ckpt")], {NUMBERS: "numbers"})
    both = [best, last, *data]
    yield Call(["ensemble", *both, "--select=greedy", to("greedy.ckpt")])
    yield Call(["ensemble", *both, "--select=learned", to("learned.ckpt")], one_number)
    yield Call(["ensemble", *both, "--pooling=vote", to("vote.ckpt")], {NUMBERS: "pooling mean"})
    yield Call(
        ["ensemble", *both, f"--figure={out / 'pairs.png'}", to("pair.ckpt")], {NUMBERS: "--figure"}
    )
    yield Call(["ensemble", best, "--heads=3", *data, to("heads.ckpt")])
    beside = [last, str(out / "answers.csv"), *data, "--select=greedy"]
    yield Call(["ensemble", *beside, to("beside_a_table.ckpt")])
    yield Call(["predict", str(out / "beside_a_table.ckpt"), images, to("together.csv")])

    made = ["calibrate", best, *data, "--conformal=0.3"]
    yield Call([*made, "--unknown=0.3", to("sets.ckpt")])
    yield Call(
        ["calibrate", best, *data, to("temperature.ckpt")],
        {NUMBERS: "--conformal A"},
    )
    yield Call([*made, "--reject-risk=0.9", to("reject.ckpt")], {NUMBERS: "no image is surer"})
    yield Call([*made, "--scaling=label", to("scaled.ckpt")], labels_alone)
    yield Call([*made, "--wanted-precision=0.5", to("precise.ckpt")], labels_alone)
    calibrated = str(out / "sets.ckpt")
    yield Call(["predict", calibrated, images, to("known.csv")])
    yield Call(["ensemble", calibrated, last, *data, "--select=greedy", to("nested.ckpt")])

    yield Call(["export", calibrated, "--format=safetensors", to("folder")])
    yield Call(["report", table, to("report.html")])
    yield Call(["compare", str(run), table])
    yield Call(["explain", calibrated, f"{images}/00.png", to("explained.png")])
    yield Call(["embed", best, images, to("points.npz")])
    yield Call(["similar", best, f"{images}/00.png", f"--in={images}"])
    yield Call(["suggest", str(out / "heads.ckpt"), str(home / "new"), to("next.csv")])
    yield Call(["serve", calibrated, "--port=0", f"--corrections={out / 'corrections'}"])

    weights = []
    for backbone in ("test_resnet", "test_vit"):
        save_file(create_network(backbone, 3).state_dict(), out / f"{backbone}.safetensors")
        weights.append(f"{backbone}={out / backbone}.safetensors")
    not_yet = {LABELS: "for which there is none yet", NUMBERS: "add label"}
    yield Call(["choose", images, *listed, f"--backbones={weights[0]}"], not_yet)

    short = ["fit", *fit, "--model.strategy=head", f"--runs={out / 'runs'}"]
    decided = ("--model.backbone", "--model.pretrained", "--model.strategy", "--trainer.max_epochs")
    several = [each for each in short if not each.startswith(decided)]
    yield Call([*several, f"--backbones={','.join(weights)}", "--name=two"], says="ensemble of")
    again = ["fit", data[0], *listed, f"--update={run}", f"--runs={out / 'runs'}"]
    yield Call([*again, "--name=updated"], says=f"beside old {run.name}")
    yield Call([*again[:3], *fit, f"--model.teacher={out / 'heads.ckpt'}", again[-1]])


NO_TASK = {"models", "sample"}  # these know of none
