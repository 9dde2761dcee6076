"""``finetune validate``: judge a checkpoint on the validation images."""

from finetune.commands.evaluation import judge


def main(arguments: list[str]) -> int:
    """Needs ``--ckpt_path`` and ``--data.root``; the checkpoint decides the rest."""
    judge("validate", arguments)
    return 0
