"""The verbs of the ``finetune`` command: one module a verb, ``main(arguments) -> exit code``."""
