"""`finetune choose` against judging every backbone on all training images.

    python benchmarks/bench_backbones.py --data DIR
    python benchmarks/bench_backbones.py --data DIR --backbones A,B,NAME=FILE

Without ``--backbones`` it takes what ``choose`` takes: with a hub its short list, without one the
installed weights. Both start with empty caches, in one process after the other, and each tells its
processor time, which a busy machine disturbs less. Prints the exhaustive table as Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

from finetune.combining import backbone_choice
from finetune.combining.backbone_choice import BackboneChoice
from finetune.commands.choose import choose, row_of


def timed(data: Path, backbones: str | None, *, all_images: bool) -> tuple[BackboneChoice, float]:
    """The choice, and the processor's seconds for it."""
    rounds = backbone_choice.rounds
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.object(
            backbone_choice, "rounds", (lambda _, images, __: [images]) if all_images else rounds
        ),
    ):
        started = time.process_time()
        found = choose(data, backbones=backbones, cache_dir=cache)
        return found, time.process_time() - started


def main() -> None:
    """Both ways, and whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbones")
    arguments = parser.parse_args()
    quick, seconds = timed(arguments.data, arguments.backbones, all_images=False)
    whole, all_seconds = timed(arguments.data, arguments.backbones, all_images=True)
    print("\n| backbone | images | accuracy | NLL | ms | MB | licence |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for trial in whole.trials:
        print(f"| {' | '.join(row_of(trial))} |")
    named = next(trial for trial in whole.trials if trial.name == quick.named.name)
    lag, error = named.lags(whole.best)
    print(f"\nchoose: {quick.named.name} in {seconds:.0f} s of the processor, {quick.reason}")
    print(f"all: {whole.best.name} in {all_seconds:.0f} s, {seconds / all_seconds:.2f} of it")
    print(f"on all images it lags behind by NLL {lag:+.3f} ± {error:.3f}")


if __name__ == "__main__":
    main()
