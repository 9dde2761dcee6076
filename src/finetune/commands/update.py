"""``fit --update RUN``: images or classes were added to a folder, and nothing begins anew.

A new run, with the settings, the weights and the split of an old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.parsing import take
from finetune.errors import UsageError
from finetune.extras import missing

if TYPE_CHECKING:
    from finetune.commands.trainer import FinetuneCLI
    from finetune.data.folder import LabelledImage
    from finetune.evaluation.comparison import Leaderboard, PairedComparison
    from finetune.evaluation.judgement import Judgement
    from finetune.training.checkpoints import Checkpoint
    from finetune.training.classifier import ImageClassifier

# What the old run has decided. Its other settings count where no option beside is given.
DECIDED = (
    *("--resume", "--ckpt_path", "--seeds", "--folds", "--data.folds", "--data.fold"),
    *("--backbones", "--model.backbones"),
    *("--data.task", "--model.pretrained", "--model.backbone", "--model.in_chans"),
    *("--model.image_size", "--model.network_options"),
)
PAGE = "update.html"
MOST_CLASSES = 12  # lines about single classes; the page has them all


@dataclass(frozen=True, slots=True)
class Updated:
    """What ``--update RUN`` means.

    Attributes:
        run: the folder, which stays as it is.
        best: the best checkpoint of the run.
        arguments: the run's settings, then the options beside.
    """

    run: Path
    best: Path
    arguments: list[str]


def updated_run(arguments: Sequence[str]) -> Updated | None:
    """The run that ``--update`` names; None without it.

    Raises:
        UsageError: the folder is no run, or an option beside would make another fit of it.
    """
    rest, value = take(arguments, "--update")
    if value is None:
        return None
    run, best = Path(value), Path(value, "checkpoints", "best.ckpt")
    if not value or not (run / "config.yaml").is_file() or not best.is_file():
        raise UsageError(
            "Expected a run folder with config.yaml and checkpoints/best.ckpt after --update, "
            f"found {value or 'nothing'}; give runs/NAME-N, of several members each by itself."
        )
    for name in (option.partition("=")[0] for option in rest):
        if name in DECIDED:
            raise UsageError(
                f"Expected no {name} beside --update, for {run} decides it; leave it out, or "
                "start a new fit."
            )
    best = best.absolute()
    kept = ["--config", str(run / "config.yaml"), f"--model.pretrained={best}"]
    return Updated(run, best, [*kept, *rest])


def check_what_weights_know(cli: FinetuneCLI) -> None:
    """Refuse to split or to name otherwise what the weights of an earlier fit have seen.

    Raises:
        UsageError: other folds than that fit's, or another task.
    """
    known, data = cli.record, cli.datamodule
    if known is None or cli.checkpoint is not None:
        return
    if cli.updates is not None and data.task_name != cli.updates.task.name:
        raise UsageError(
            f"Expected images for {cli.updates.task.name}, as {cli.updates.path} answers, found "
            f"{data.task_name}; another task is a new fit."
        )
    fold = data.split_settings.fold
    if fold != known.fold and any(known.knows_id(image.id) for image in data.folder.images):
        raise UsageError(
            f"Expected data.fold {known.fold}, by which the fit of these weights was split, found "
            f"{fold}, which would hold out what has trained them; begin from other weights."
        )


def lines_about_val(cli: FinetuneCLI) -> list[str]:
    """What picks the result where so few images are new that none of them is held out."""
    if cli.updates is None or cli.record is None:
        return []
    train, val = (
        sum(not cli.record.knows_id(image.id) for image in cli.datamodule.images(side))
        for side in ("train", "val")
    )
    if not train or val:
        return []
    return [
        f"no new image is val ({train} train): what is kept, and the val figures, go by the old "
        "val images alone, which say nothing about new ones"
    ]


def compare_with_old(cli: FinetuneCLI, run: Path, folder: Path) -> None:
    """Say whether anything got worse, by the test images of the old run.

    Args:
        cli: of the new fit.
        run: the old run's folder.
        folder: the new run's, for the page and the figures.
    """
    from finetune.tasks.multiclass import MULTICLASS
    from finetune.training.classifier import ImageClassifier

    old = cli.updates
    assert old is not None
    images = _old_test_images(cli, old)
    if not images:
        print(f"old and new are not compared: no test image of {run} is left")
        return
    if cli.runtime.world_size > 1 or old.task != MULTICLASS:
        print("old and new are not compared: run finetune test on each, with one process")
        return
    names = (f"old {run.resolve().name}", f"new {folder.resolve().name}")
    classifiers = (
        ImageClassifier.rebuilt(old),
        ImageClassifier.from_checkpoint(folder / "checkpoints" / "best.ckpt"),
    )
    board = _compared(dict(zip(names, classifiers, strict=True)), images, cli)
    print("\n".join(lines_about(board, names)), flush=True)
    _record(board, names, cli, folder)


def _old_test_images(cli: FinetuneCLI, old: Checkpoint) -> list[LabelledImage]:
    """Those that the old run held out, and whose class it knows."""
    assert cli.record is not None
    own, known = cli.datamodule.class_names, set(old.class_names)
    return [
        image
        for image in cli.datamodule.images("test")
        if cli.record.knows_id(image.id)
        and isinstance(image.label, int)
        and own[image.label] in known
    ]


def _compared(
    classifiers: dict[str, ImageClassifier], images: Sequence[LabelledImage], cli: FinetuneCLI
) -> Leaderboard:
    from finetune.data.groups import groups_with_duplicates
    from finetune.evaluation.comparison import compare_all
    from finetune.evaluation.evaluate import evaluate_logits
    from finetune.evaluation.judge import numbered
    from finetune.prediction.inference import predict

    own, paths = cli.datamodule.class_names, [image.path for image in images]
    evaluations, groups = {}, numbered(groups_with_duplicates(images))
    for name, classifier in classifiers.items():
        answers = predict(classifier, paths, max_pixels=cli.datamodule.max_pixels)
        labels = [classifier.class_names.index(own[int(str(i.label))]) for i in images]
        evaluations[name] = evaluate_logits(
            labels, answers.logits, answers.class_names, paths, groups=groups
        )
    return compare_all(evaluations)


def lines_about(board: Leaderboard, names: tuple[str, str]) -> list[str]:
    """What is to be said of an old and a new classifier: all images, then class by class."""
    from finetune.evaluation.comparison import compare_classes

    old, new = (board.evaluations[name] for name in names)
    (pair,) = board.pairs
    before, now = (_leading(each) for each in (old, new))
    lines = [
        f"{names[1]} beside {names[0]}, on its {len(old.paths)} test images: accuracy "
        f"{before['accuracy']:.3f} before, {now['accuracy']:.3f} now; NLL {before['NLL']:.3f}, "
        f"{now['NLL']:.3f}",
        f"{pair.verdict()} (p = {pair.adjusted_p_value:.3g})",
    ]
    by_class = compare_classes((names[1], new), (names[0], old))
    changed = sorted(
        ((name, each) for name, each in by_class.items() if each.first_only or each.second_only),
        key=lambda item: item[1].difference,
    )
    lines += [f"  {name}: {_of_class(each)}" for name, each in changed[:MOST_CLASSES]]
    if len(changed) > MOST_CLASSES:
        lines.append(f"  and {len(changed) - MOST_CLASSES} classes more")
    worse = [name for name, each in by_class.items() if each.difference < 0]
    clearly = [name for name in worse if by_class[name].is_real()]
    return [*lines, _verdict(worse, clearly)]


def _leading(evaluation: Judgement) -> dict[str, float]:
    return {score.name: score.value for score in evaluation.leading}


def _of_class(pair: PairedComparison) -> str:
    return (
        f"of {pair.images} images {pair.first_only} right only now, {pair.second_only} only "
        f"before (p = {pair.adjusted_p_value:.3g})"
    )


def _verdict(worse: Sequence[str], clearly: Sequence[str]) -> str:
    if clearly:
        return f"clearly worse: {', '.join(clearly)}"
    if worse:
        return f"no class is clearly worse; fewer images are right of {', '.join(worse)}"
    return "no class got worse"


def _record(board: Leaderboard, names: tuple[str, str], cli: FinetuneCLI, folder: Path) -> None:
    from finetune.training.metrics_file import write_metrics

    old, new = (_leading(board.evaluations[name]) for name in names)
    figures = {"accuracy": new["accuracy"], "accuracy_before": old["accuracy"]}
    figures |= {"nll": new["NLL"], "nll_before": old["NLL"], "p_value": board.pairs[0].p_value}
    write_metrics(folder, "update", figures)
    if missing("report"):
        return
    from finetune.reporting.report import ReportDetails, write_page

    details = ReportDetails(root=cli.datamodule.root)
    sections = {name: (board.evaluations[name], details) for name in names}
    write_page(folder / PAGE, sections, title=f"{names[1]} beside {names[0]}", leaderboard=board)
