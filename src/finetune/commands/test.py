"""``finetune test``: judge a checkpoint on the test images."""

from finetune.commands.evaluation import judge


def main(arguments: list[str]) -> int:
    """Needs ``--ckpt_path`` and ``--data.root``; the checkpoint decides the rest."""
    judge("test", arguments)
    return 0
