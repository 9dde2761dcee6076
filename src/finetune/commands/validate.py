"""``finetune validate``: judge a checkpoint on the validation images."""

from finetune.commands.evaluate import judge
from finetune.commands.terminal import warnings_in_one_line


def main(arguments: list[str]) -> int:
    """Needs ``--ckpt_path`` and ``--data.root``; the checkpoint decides the rest."""
    with warnings_in_one_line():
        judge("validate", arguments)
    return 0
