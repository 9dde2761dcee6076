"""More from the same features: each part of the final layer's fit measured alone.

    python benchmarks/bench_features.py DATA... --features features --draws 10

DATA holds ``train/<class>/`` and ``test/<class>/`` (or ``val``). For every number of images a class
and every draw of them, final layers are fitted on the same features and judged on the same other
images. The features of every image and view are computed once and kept in the folder that
``--features`` names.

now         what ``fit_probe`` does: features divided by their spreads mixed in equal parts with the
            common one; the strongest penalty within one standard error of the best
averaged    penalties averaged, by how likely each is the best: exp(-d^2 / 2), d in standard errors
common      all features divided by one common spread
spread      a quarter, a half or all of the common spread, chosen with the penalty
twice       the mirror image as a second view, in fitting alone
mirror      the same, and in answering
stages      pooled outputs of four stages beside the head's features
either      stages where cross-validation prefers them by more than one (paired) standard error
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune import ImageFolderDataModule
from finetune.commands.allocator import keep_freed_memory
from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform, training_transform
from finetune.networks.factory import create_network, preprocessing_of
from finetune.training.logistic_regression import LogisticProblem, logistic_problem, solve_logistic
from finetune.training.penalty_search import (
    FOLDS,
    L2_GRID,
    stratified_parts,
)
from finetune.training.phases.probe import MOST_VIEWS, views_of_few
from finetune.training.probe_rows import principal_axes

VIEWS = 3  # that a fit keeps at least, unless told otherwise
PARTS = ("now", "averaged", "common", "spread", "twice", "mirror", "stages", "either")
# The common spread's part of a feature's own, and what a part's features are.
COMMON = {"quarter": 0.25, "common": 1.0}
MADE_OF = {
    "averaged": ("now",),
    "spread": ("now", "quarter", "common"),
    "either": ("now", "stages"),
}


class Seen(NamedTuple):
    """Features of one split: a list of views, each a list of groups ``(N, D_g)``; labels ``(N,)``.

    The views are the plain image, its mirror image and, in training, random ones; the groups are
    the head's features, then the stages' from low to high.
    """

    views: list[list[Tensor]]
    labels: Tensor


def seen(root: str, backbone: str, weights: str | bool) -> tuple[Seen, Seen]:
    """The features of the training images and of those that judge."""
    network = create_network(backbone, 2, pretrained=weights).eval()
    network = network.to(memory_format=torch.channels_last)
    preprocessing = preprocessing_of(backbone)
    pooled: dict[str, Tensor] = {}
    stages = [level["module"] for level in network.feature_info][-4:]
    for name in stages:
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: pooled.__setitem__(name, output.mean((2, 3)))
        )
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )

    @torch.no_grad()
    def groups(images: Tensor) -> list[Tensor]:
        parts = []
        for batch in images.split(16):
            normalised = ((batch / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            features = network.forward_features(normalised)
            head = network.forward_head(features, pre_logits=True)
            parts.append([head, *(pooled[name] for name in stages)])
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    folder = ImageFolderDataModule(root, preprocessing=preprocessing, val_fraction=0.0)
    plain = evaluation_transform(preprocessing)
    random = training_transform(preprocessing, "light")
    found = []
    for split in ("train", "test" if (Path(root) / "test").is_dir() else "val"):
        entries = folder.images(split)  # type: ignore[arg-type]
        images = [ImageReader()(entry.path) for entry in entries]
        upright = torch.stack([plain(image) for image in images])
        views = [groups(upright), groups(upright.flip(-1))]
        for number in range(MOST_VIEWS if split == "train" else 0):
            torch.manual_seed(100 + number)
            views.append(groups(torch.stack([random(image) for image in images])))
        found.append(Seen(views, torch.tensor([entry.label for entry in entries])))
    return found[0], found[1]


class Fit:
    """Final layers of one draw on one kind of features: held-out losses and answers a penalty."""

    def __init__(self, train: Seen, test: Seen, views: int, part: str) -> None:
        chosen = [0, *([1] if part in ("twice", "mirror") else []), *range(2, 2 + views)]
        groups = range(len(train.views[0]) if part == "stages" else 1)
        columns, judged = [], [[], []]
        for group in groups:
            rows = torch.cat([train.views[view][group] for view in chosen]).double()
            spread = rows.std(dim=0, correction=0)
            common = spread.mean()
            share = COMMON.get(part, 0.5)
            spread = ((1 - share) * spread.square() + share * common.square()).sqrt()
            columns.append((rows - rows.mean(dim=0)) / spread)
            for view in (0, 1):
                other = test.views[view][group].double()
                judged[view].append((other - rows.mean(dim=0)) / spread)
        self.rows, axes = principal_axes(torch.cat(columns, dim=1))
        self.judged = [torch.cat(parts, dim=1) @ axes for parts in judged]
        if part != "mirror":
            self.judged.pop()
        self.labels = train.labels.repeat(len(chosen))
        self.images = torch.arange(len(train.labels)).repeat(len(chosen))
        self.fold_of = stratified_parts(self.labels, self.images, FOLDS, 0)
        self.classes = int(self.labels.max()) + 1
        self.losses: dict[float, Tensor] = {}
        self.solutions: dict[int, Tensor] = {}

    def try_all(self) -> None:
        """The decades, until two in a row are worse than the best so far; then half decades."""
        for l2 in L2_GRID:
            self.judge(l2)
            values = [float(losses.mean()) for losses in self.losses.values()]
            if len(values) > 2 and min(values[:-2]) < min(values[-2:]):
                break
        best = self.best()
        for l2 in (best * 10**0.5, best / 10**0.5):
            self.judge(l2)

    def judge(self, l2: float) -> None:
        """Held-out losses of one penalty."""
        losses = torch.zeros(len(self.labels), dtype=torch.float64)
        for fold in range(FOLDS):
            out = self.fold_of == fold
            found = solve_logistic(
                self._problem(~out), l2, tolerance=3e-3, start=self.solutions.get(fold)
            )
            self.solutions[fold] = found
            logits = self.rows[out] @ found[:, :-1].T + found[:, -1]
            losses[out] = cross_entropy(logits, self.labels[out], reduction="none")
        self.losses[l2] = losses

    def best(self) -> float:
        """The penalty of the least held-out NLL."""
        return min(self.losses, key=lambda l2: float(self.losses[l2].mean()))

    def strongest(self) -> dict[float, float]:
        """The strongest penalty within one standard error of the best."""
        losses = self.losses[self.best()]
        bound = losses.mean() + losses.std(correction=0) / len(losses) ** 0.5
        return {max(l2 for l2, found in self.losses.items() if found.mean() <= bound): 1.0}

    def averaged(self) -> dict[float, float]:
        """Shares of the decades by how likely each is the best."""
        best = self.losses[self.best()]
        by_image = torch.zeros_like(best).index_add_(0, self.images, best - best.mean())
        error = float(by_image.norm()) / len(best)
        distances = {
            l2: float(found.mean() - best.mean()) / error for l2, found in self.losses.items()
        }
        kept = {l2: math.exp(-(d**2) / 2) for l2, d in distances.items() if d < 2}
        return {l2: weight / sum(kept.values()) for l2, weight in kept.items()}

    def answers(self, shares: dict[float, float]) -> Tensor:
        """Logits of the images that judge."""
        mean, found = torch.zeros(1, dtype=torch.float64), None
        for l2 in sorted(shares, reverse=True):
            found = solve_logistic(self._problem(slice(None)), l2, tolerance=1e-5, start=found)
            mean = mean + shares[l2] * found
        logits = [rows @ mean[:, :-1].T + mean[:, -1] for rows in self.judged]
        return torch.stack(logits).mean(dim=0)

    def _problem(self, rows: Tensor | slice) -> LogisticProblem:
        labels = self.labels[rows]
        weights = torch.ones(len(labels), dtype=torch.float64)
        return logistic_problem(self.rows[rows], labels, weights, self.classes)


class Fits:
    """The fits of one draw, each made once for all parts that need it."""

    def __init__(self, train: Seen, test: Seen, views: int) -> None:
        self.seen = train, test, views
        self.made: dict[str, tuple[Fit, float]] = {}

    def answers(self, part: str) -> tuple[Tensor, float]:
        """Logits of one part's final layer, and the processor seconds that it takes alone."""
        made = [self._fit(kind) for kind in MADE_OF.get(part, (part,))]
        fits, seconds = [fit for fit, _ in made], sum(spent for _, spent in made)
        fit = min(fits, key=lambda fit: float(fit.losses[fit.best()].mean()))
        if part == "either" and fit is not fits[0]:
            gain = fits[0].losses[fits[0].best()] - fit.losses[fit.best()]
            if gain.mean() <= gain.std() / len(gain) ** 0.5:
                fit = fits[0]
        started = time.process_time()
        logits = fit.answers(fit.averaged() if part == "averaged" else fit.strongest())
        return logits, seconds + time.process_time() - started

    def _fit(self, kind: str) -> tuple[Fit, float]:
        if kind not in self.made:
            started = time.process_time()
            fit = Fit(*self.seen, kind)
            fit.try_all()
            self.made[kind] = fit, time.process_time() - started
        return self.made[kind]


def drawn(train: Seen, per_class: int, seed: int) -> Seen:
    """So many images of each class; all of them for 0."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    most = per_class or len(order)
    rows = torch.cat([order[train.labels[order] == c][:most] for c in train.labels.unique()])
    return Seen([[group[rows] for group in view] for view in train.views], train.labels[rows])


def main() -> None:
    """Measure every cell and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default=None, help="a file; the published ones without")
    parser.add_argument("--features", default=None, help="folder that keeps what was computed")
    parser.add_argument("--per-class", type=int, nargs="+", default=[2, 5, 10, 20, 0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    keep_freed_memory()
    print("| images | a class | draws | part | NLL | times now | accuracy, % | processor s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for root in options.data:
        train, test = _kept(root, options)
        for per_class in options.per_class:
            measured = defaultdict(list)
            for draw in range(options.draws if per_class else 1):
                few = drawn(train, per_class, draw)
                images_a_class = len(few.labels) / len(few.labels.unique())
                fits = Fits(few, test, views_of_few(images_a_class, VIEWS))
                for part in options.parts:
                    logits, seconds = fits.answers(part)
                    nll = float(cross_entropy(logits, test.labels))
                    right = float((logits.argmax(1) == test.labels).double().mean())
                    measured[part].append((nll, right, seconds))
            _tell(Path(root).name, per_class, measured)


def _tell(name: str, per_class: int, measured: dict[str, list[tuple[float, float, float]]]) -> None:
    """One line a part: means over the draws, with 95 % intervals of these means."""
    reference = torch.tensor(measured["now"])[:, 0] if "now" in measured else None
    for part, values in measured.items():
        table = torch.tensor(values)
        count = len(table)
        wide = 1.96 * table.std(dim=0) / count**0.5 if count > 1 else torch.zeros(3)
        nll, right, seconds = table.mean(dim=0).tolist()
        ratio = nll / float(reference.mean()) if reference is not None else float("nan")
        print(
            f"| {name} | {per_class or 'all'} | {count} | {part} | {nll:.3f} ± {wide[0]:.3f} | "
            f"{ratio:.2f} | {100 * right:.1f} ± {100 * wide[1]:.1f} | {seconds:.1f} |",
            flush=True,
        )


def _kept(root: str, options: argparse.Namespace) -> tuple[Seen, Seen]:
    if options.features is None:
        return seen(root, options.backbone, options.weights or True)
    path = Path(options.features) / f"{options.backbone}-{Path(root).name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = seen(root, options.backbone, options.weights or True)
        torch.save([tuple(part) for part in found], path)
    train, test = torch.load(path, weights_only=True)
    return Seen(*train), Seen(*test)


if __name__ == "__main__":
    main()
