"""``finetune validate``: judge a checkpoint on the validation images."""

from finetune.commands.evaluation import evaluate_checkpoint


def main(arguments: list[str]) -> int:
    """Needs ``--ckpt_path`` and ``--data.root``; the checkpoint decides the rest."""
    return evaluate_checkpoint("validate", arguments)
