"""Accuracy against the number of training images: scratch, frozen, fine-tuned.

    python benchmarks/bench_curve.py DATA --output curve.png

DATA holds ``train/<class>/`` and ``test/<class>/``. For every number of images a class, and for
every repeat with other images drawn, classifiers learn from the same images:

scratch       ``baseline_cnn``, everything learned from nothing, on smaller images (time)
same network  the backbone's architecture, everything learned from nothing, on whole images
frozen        a pretrained backbone, the final layer alone fitted on its features
fine-tuned    the same, and then all of it at a low rate

All are judged on the same test set, with ``--no-copies`` without the images of which a near copy
is among the training images: whoever draws more of these knows more answers by heart. Points are
means over repeats; bars are 95 % Wilson intervals of that mean for the size of the test set.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from torch.nn import functional

from finetune import ImageFolderDataModule
from finetune.commands.allocator import keep_freed_memory
from finetune.data.decoding import ImageReader
from finetune.data.duplicates import exact_duplicates, near_duplicates
from finetune.data.folder import LabelledImage
from finetune.data.inspection import inspect_files
from finetune.data.transforms import evaluation_transform, training_transform
from finetune.evaluation.intervals import wilson_interval
from finetune.networks.factory import create_network
from finetune.networks.freezing import apply_modes, freeze, split_at
from finetune.reporting.style import THEMES, add_legend, new_axes, to_png
from finetune.spec.preprocessing import Preprocessing
from finetune.training.linear_probe import Probe, fit_probe
from finetune.training.phases.probe import views_of_few

BACKBONE = "tf_efficientnet_lite0"
VIEWS = 3
METHODS = ("fine-tuned", "frozen", "scratch", "same network")


@dataclass(frozen=True)
class Images:
    """``images`` uint8 ``(N, 3, S, S)``, ``labels`` ``(N,)``."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, rows: Tensor) -> Images:
        return Images(self.images[rows], self.labels[rows])

    def normalised(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Float images about zero, for a backbone with mean and std of 0.5."""
        scaled = self.images[rows].float() / 127.5 - 1
        return scaled.contiguous(memory_format=torch.channels_last)

    def shrunk(self, size: int) -> Images:
        """The same images at another size, by area."""
        if size >= self.images.shape[-1]:
            return self
        parts = [functional.adaptive_avg_pool2d(p.float(), size) for p in self.images.split(64)]
        return Images(torch.cat(parts).round().byte(), self.labels)

    def draw(self, per_class: int, seed: int) -> Images:
        """The first ``per_class`` of each class in a seeded order: larger draws hold smaller."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        chosen = [order[self.labels[order] == label][:per_class] for label in self.labels.unique()]
        return self[torch.cat(chosen)]


@dataclass(frozen=True)
class Result:
    """One classifier's answers on the test images."""

    method: str
    images_per_class: int
    repeat: int
    correct: int
    total: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.total


def load(
    root: str | Path, image_size: int, *, no_copies: bool = False
) -> tuple[Images, Images, tuple[str, ...]]:
    """Training and test images of a folder, decoded once, and the class names."""
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(image_size, half, half, crop_fraction=1.0)
    folder = ImageFolderDataModule(str(root), preprocessing=preprocessing, val_fraction=0.0)
    transform = evaluation_transform(preprocessing)

    def read(split: str) -> Images:
        entries = folder.images(split)
        if split == "test" and no_copies:
            copied = copies(entries, folder.images("train"), Path(root))
            entries = [entry for entry in entries if entry.path not in copied]
        images = [transform(ImageReader()(entry.path)) for entry in entries]
        return Images(torch.stack(images), torch.tensor([entry.label for entry in entries]))

    return read("train"), read("test"), folder.class_names


def copies(test: Sequence[LabelledImage], train: Sequence[LabelledImage], root: Path) -> set[Path]:
    """Test images of which a copy or near copy is among the training images."""
    paths = [entry.path for entry in [*test, *train]]
    inspections = inspect_files(paths, root=root, perceptual=True, remember=False)
    groups = [*near_duplicates(inspections), *exact_duplicates(inspections)]
    shared = [group for group in groups if max(group) >= len(test)]
    return {paths[index] for group in shared for index in group if index < len(test)}


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, shift the batch by up to a tenth."""
    mirror = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
    size = images.shape[-1]
    reach = max(size // 10, 1)
    top, left = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, (reach,) * 4, mode="reflect")
    return padded[..., top : top + size, left : left + size]


def learn(
    network: nn.Module,
    images: Images,
    groups: Sequence[dict],
    *,
    steps: int,
    seed: int,
    batch_norm: str,
    batch_size: int = 32,
) -> None:
    """AdamW with a one-cycle rate over a fixed number of steps, in place."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    apply_modes(network, batch_norm=batch_norm)
    queue = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(queue) < min(batch_size, len(images.labels)):
            queue = torch.cat([queue, torch.randperm(len(images.labels), generator=generator)])
        rows, queue = queue[:batch_size], queue[batch_size:]
        logits = network(augmented(images.normalised(rows), generator))
        loss = functional.cross_entropy(logits, images.labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


@torch.no_grad()
def answers(forward: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """What a network says to all images, batch by batch."""
    rows = torch.arange(len(images.labels)).split(64)
    return torch.cat([forward(images.normalised(part)) for part in rows])


class Curve:
    """Everything that is shared between the points of one curve."""

    def __init__(
        self,
        train: Images,
        test: Images,
        *,
        scratch_steps: int,
        epochs: int,
        scratch_size: str = "small",
        scratch_pixels: int = 64,
    ) -> None:
        self.train, self.test = train, test
        self.classes = int(train.labels.max()) + 1
        self.scratch_steps, self.epochs = scratch_steps, epochs
        self.scratch_size, self.scratch_pixels = scratch_size, scratch_pixels
        bottom, _ = split_at(self.backbone().to(memory_format=torch.channels_last), "head")
        self.test_features = answers(bottom, test)
        self.bottom = bottom

    def backbone(self) -> nn.Module:
        """The pretrained network with a new final layer."""
        return create_network(BACKBONE, self.classes, pretrained=True)

    def scratch(self, images: Images, seed: int) -> Tensor:
        """Logits for the test images of a small network that starts from nothing."""
        torch.manual_seed(seed)
        network = create_network(
            "baseline_cnn", self.classes, drop_rate=0.1, size=self.scratch_size
        )
        small = images.shrunk(self.scratch_pixels)
        self.learn_from_nothing(network, small, seed)
        return answers(network, self.test.shrunk(self.scratch_pixels))

    def same_network(self, images: Images, seed: int) -> Tensor:
        """Logits for the test images of the backbone's architecture without its weights."""
        torch.manual_seed(seed)
        network = create_network(BACKBONE, self.classes, pretrained=False, drop_rate=0.1)
        network.to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # TensorFlow's 0.01 would not follow so few steps
        self.learn_from_nothing(network, images, seed)
        return answers(network, self.test)

    def learn_from_nothing(self, network: nn.Module, images: Images, seed: int) -> None:
        """Thirty epochs, within a quarter and the whole of ``scratch_steps``."""
        wanted = 30 * len(images.labels) // 32
        steps = max(self.scratch_steps // 4, min(wanted, self.scratch_steps))
        groups = [{"params": network.parameters(), "lr": 3e-3}]
        learn(network, images, groups, steps=steps, seed=seed, batch_norm="train")

    def fitted(self, images: Images, seed: int) -> Probe:
        """The final layer, where images are few on random views as well: as ``finetune fit``."""
        views = [images]
        torch.manual_seed(seed)
        view = training_transform(Preprocessing(images.images.shape[-1]), "light")
        for _ in range(views_of_few(len(images.labels) / self.classes, VIEWS)):
            seen = torch.stack([view(image) for image in images.images])
            views.append(Images(seen, images.labels))
        return fit_probe(
            torch.cat([answers(self.bottom, each) for each in views]),
            images.labels.repeat(len(views)),
            self.classes,
            groups=torch.arange(len(images.labels)).repeat(len(views)),
            seed=seed,
        )

    def frozen(self, images: Images, seed: int) -> Tensor:
        """Logits of a final layer fitted on the frozen backbone's features."""
        probe = self.fitted(images, seed)
        return probe.logits(self.test_features)

    def fine_tuned(self, images: Images, seed: int) -> Tensor:
        """Logits after all of the backbone learned too, from the fitted final layer on."""
        network = self.backbone().to(memory_format=torch.channels_last)
        probe = self.fitted(images, seed)
        final = network.get_classifier()
        final.load_state_dict({"weight": probe.weight.float(), "bias": probe.bias.float()})
        freeze(network, ())
        own = set(final.parameters())
        body = [value for value in network.parameters() if value not in own]
        groups = [{"params": body, "lr": 1e-4}, {"params": list(own), "lr": 1e-3}]
        steps = max(10, self.epochs * len(images.labels) // 32)
        learn(network, images, groups, steps=steps, seed=seed, batch_norm="eval")
        return answers(network, self.test)

    def measure(
        self, methods: Sequence[str], per_class: Sequence[int], repeats: int
    ) -> list[Result]:
        """Every method at every number of images, ``repeats`` times with other images."""
        functions = {
            "scratch": self.scratch,
            "frozen": self.frozen,
            "fine-tuned": self.fine_tuned,
            "same network": self.same_network,
        }
        results = []
        for count in per_class:
            for repeat in range(repeats):
                images = self.train.draw(count, seed=repeat)
                for method in methods:
                    start = time.perf_counter()
                    logits = functions[method](images, repeat)
                    right = int((logits.argmax(1) == self.test.labels).sum())
                    seconds = time.perf_counter() - start
                    total = len(self.test.labels)
                    results.append(Result(method, count, repeat, right, total, seconds))
        return results


def summary(results: Sequence[Result]) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Mean accuracy and its interval, for each method and number of images."""
    points = {}
    for method, count in dict.fromkeys((r.method, r.images_per_class) for r in results):
        cell = [r for r in results if (r.method, r.images_per_class) == (method, count)]
        mean = sum(r.accuracy for r in cell) / len(cell)
        low, high = wilson_interval(round(mean * cell[0].total), cell[0].total)
        points[method, count] = (mean, low, high)
    return points


def curve_figure(results: Sequence[Result], *, title: str = "") -> Figure:
    """Accuracy against training images a class, one line a method, with intervals."""
    figure, (ax,) = new_axes("light", 6.4, 4.2)
    theme, points = THEMES["light"], summary(results)
    counts = sorted({result.images_per_class for result in results})
    for index, method in enumerate(m for m in METHODS if (m, counts[0]) in points):
        mean, low, high = zip(*(points[method, count] for count in counts), strict=True)
        bars = [
            [m - a for m, a in zip(mean, low, strict=True)],
            [b - m for m, b in zip(mean, high, strict=True)],
        ]
        # A little aside, so that bars at the same count do not cover each other.
        places = [count * (1 + 0.025 * (index - 1)) for count in counts]
        colour, marker = theme.palette[index], "osD^"[index]
        ax.errorbar(places, mean, bars, color=colour, marker=marker, capsize=3, label=method)
    ax.set_xscale("log")
    ax.set_xticks(counts, labels=[str(count) for count in counts])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 1.02)
    ax.grid(axis="y", color=theme.grid)
    ax.set_xlabel("training images a class")
    ax.set_ylabel("test accuracy, 95 % interval")
    ax.set_title(title, fontsize=10)
    add_legend(ax, "light", loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--per-class", type=int, nargs="+", default=[2, 5, 10, 20, 60])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--scratch-steps", type=int, default=700)
    parser.add_argument("--scratch-pixels", type=int, default=64, help="its image size")
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:3])
    parser.add_argument("--no-copies", action="store_true", help="judge without near copies")
    parser.add_argument("--output", type=Path, default=Path("curve.png"))
    given = parser.parse_args()
    keep_freed_memory()
    train, test, class_names = load(given.data, given.image_size, no_copies=given.no_copies)
    curve = Curve(
        train,
        test,
        scratch_steps=given.scratch_steps,
        scratch_pixels=given.scratch_pixels,
        epochs=given.epochs,
    )
    results = []
    for count in given.per_class:
        results += curve.measure(given.methods, [count], given.repeats)
        for method in given.methods:
            mean, low, high = summary(results)[method, count]
            seconds = [
                r.seconds for r in results if (r.method, r.images_per_class) == (method, count)
            ]
            print(
                f"{count:4d} a class  {method:<11} {mean:.3f} [{low:.3f}, {high:.3f}]  "
                f"{sum(seconds) / len(seconds):6.1f} s",
                flush=True,
            )
    title = f"{len(class_names)} classes, {len(test.labels)} test images, {BACKBONE}"
    given.output.write_bytes(to_png(curve_figure(results, title=title)))
    rows = [asdict(result) for result in results]
    given.output.with_suffix(".json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
