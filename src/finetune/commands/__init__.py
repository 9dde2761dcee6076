"""The verbs of the ``finetune`` command, one module a verb, each with ``main(arguments) -> exit code``."""
