"""`finetune choose` against judging every backbone on all training images.

    python benchmarks/bench_backbones.py --data DIR
    python benchmarks/bench_backbones.py --data DIR --backbones A,B,NAME=FILE --seeds 10

Without ``--backbones`` it takes what ``choose`` takes: with a hub its short list, without one the
installed weights. Both ways begin with empty caches, and their processor time is told, which a busy
machine disturbs less. Further seeds, of split and sample, start from the features of the first.
Prints the exhaustive table as Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

from finetune.combining import backbone_choice
from finetune.combining.backbone_choice import BackboneChoice
from finetune.commands import backbone_trials, trainer  # noqa: F401  so that no time is theirs
from finetune.commands.choose import choose, row_of

ALL_AT_ONCE = mock.patch.object(backbone_choice, "rounds", lambda names, images, classes: [images])


def timed(data: Path, backbones: str | None, cache: str, seed: int) -> tuple[BackboneChoice, float]:
    """The choice, and the processor's seconds for it."""
    started = time.process_time()
    found = choose(data, backbones=backbones, cache_dir=cache, seed=seed, quiet=True)
    return found, time.process_time() - started


def lag_of(quick: BackboneChoice, whole: BackboneChoice) -> tuple[float, float]:
    """How far what was named lies behind the best where all are judged on all images."""
    named = next(trial for trial in whole.trials if trial.name == quick.named.name)
    return named.lags(whole.best)


def main() -> None:
    """Both ways, and whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbones")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as cache:
        asked = (arguments.data, arguments.backbones)
        quick, seconds = timed(*asked, first, 0)
        with ALL_AT_ONCE:
            whole, all_seconds = timed(*asked, cache, 0)
        print("| backbone | images | accuracy | NLL | ms | MB | licence |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for trial in whole.trials:
            print(f"| {' | '.join(row_of(trial))} |")
        share = seconds / all_seconds
        print(f"\n{seconds:.1f} s of the processor instead of {all_seconds:.1f} s: {share:.2f}")
        for seed in range(arguments.seeds):
            if seed > 0:
                quick, _ = timed(*asked, cache, seed)
                with ALL_AT_ONCE:
                    whole, _ = timed(*asked, cache, seed)
            lag, error = lag_of(quick, whole)
            print(
                f"seed {seed}: {quick.named.name}; on all images the best is {whole.best.name}, "
                f"which is ahead by NLL {lag:.4f} ± {error:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
