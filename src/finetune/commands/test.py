"""``finetune test``: judge a checkpoint on the test images."""

from finetune.commands.evaluate import judge
from finetune.commands.terminal import warnings_in_one_line


def main(arguments: list[str]) -> int:
    """Needs ``--ckpt_path`` and ``--data.root``; the checkpoint decides the rest."""
    with warnings_in_one_line():
        judge("test", arguments)
    return 0
