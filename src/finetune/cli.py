"""The ``finetune`` command: a thin list of verbs, quick because nothing heavy is imported here."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from traceback import extract_tb
from types import ModuleType

from finetune.commands.allocator import keep_freed_memory
from finetune.commands.launch import one_of_several, run_in_processes, say_failure
from finetune.commands.terminal import shown_in_one_line, shown_streams
from finetune.commands.waiting import wait_politely
from finetune.data.workers import limit_threads
from finetune.errors import FinetuneError, UsageError
from finetune.long_steps import shown_steps
from finetune.processes import ProcessesNeeded, end_with_parent, own_place

VERBS = {
    "fit": "fine-tune a classifier on a folder of images",
    "validate": "judge a checkpoint on the validation images",
    "test": "judge a checkpoint on the test images, with a report",
    "predict": "name the class of images, into CSV, Parquet or JSON lines",
    "choose": "name the right backbone for a folder of images, by measuring",
    "models": "list the backbones and baselines that can be named",
    "check": "find what is wrong with a folder of images",
    "split": "write a split of a folder, or folds, into a CSV manifest",
    "inspect": "show a network's layers, receptive fields, parameters and filters",
    "average": "average the weights of several checkpoints into one",
    "ensemble": "combine the answers of several checkpoints in one file",
    "calibrate": "fit temperature, reject threshold and prediction sets",
    "export": "write a checkpoint for other programs: ONNX, torch.export, safetensors, timm",
    "report": "write one HTML page about runs, checkpoints or predictions",
    "compare": "a leaderboard of runs that says which differences are real",
    "explain": "show where in an image the answer comes from",
    "embed": "write what a network makes of images, as points of one space",
    "similar": "find the images nearest to one",
    "suggest": "choose the unlabelled images whose labels would tell the most",
    "serve": "serve a page to try a checkpoint on, and answers for programs",
    "sample": "write the embedded sample folder of photographs",
}
# These go on when nobody reads what they print: a fit does not depend on it.
WRITING_VERBS = set(VERBS) - {"models", "check", "inspect", "compare"}
# These deal the work out to several processes; of the others one does it all.
SHARED_VERBS = {"fit", "validate", "test", "predict"}
LIGHT_VERBS = {"models"}  # these compute nothing, and need no torch
OK, FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Returns:
        0 done; 1 failed, or ``check`` found something; 2 a wrong call; 130 stopped by Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end_with_parent()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    verb = arguments[0] if arguments else "help"
    try:
        # Long work goes on without a reader; what only prints ends with it.
        with shown_streams(needs_reader=verb not in WRITING_VERBS), shown_steps():
            return one_of_several(lambda: _run(verb, arguments[1:], debug=debug))
    except BrokenPipeError:
        if debug and verb in WRITING_VERBS:
            raise
        return OK


def _run(verb: str, rest: list[str], *, debug: bool) -> int:
    try:
        if verb in ("-h", "--help", "help"):
            print(_help())
            return OK
        if verb == "--version":
            from finetune.distribution import own_version

            print(own_version())
            return OK
        if verb not in VERBS:
            raise UsageError(_unknown(verb))
        if verb not in SHARED_VERBS and own_place().rank > 0:
            return OK
        if verb not in LIGHT_VERBS:
            keep_freed_memory()
            wait_politely()
            limit_threads()
        return _done(import_module(f"finetune.commands.{verb}"), verb, rest)
    except ProcessesNeeded as needed:
        return run_in_processes(needed.count, [verb, *rest, *["--debug"][: int(debug)]])
    except FinetuneError as error:
        if debug:
            raise
        say_failure(f"finetune: {shown_in_one_line(str(error))}", error)
        return WRONG_CALL if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt as error:
        say_failure("finetune: stopped.", error)
        return INTERRUPTED
    except Exception as error:
        # Of what only prints, the reader has left; what writes has lost something else.
        if debug or (isinstance(error, BrokenPipeError) and verb not in WRITING_VERBS):
            raise
        say_failure(f"finetune: {_in_one_line(verb, error)}", error)
        return FAILED
    except SystemExit as stop:  # parsers of arguments end this way, after their own message
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else OK


def _done(module: ModuleType, verb: str, rest: list[str]) -> int:
    """What a verb does: its function, unless it has an exit code or a parser of its own."""
    if hasattr(module, "main"):
        return int(module.main(rest))
    from finetune.commands.verb import run

    run(getattr(module, verb), rest)
    return OK


def _in_one_line(verb: str, error: Exception) -> str:
    """What the machine or Lightning refuses, in their words; of a fault of ours, where it was."""
    words = " ".join(str(error).split())
    if type(error).__name__ == "MisconfigurationException" or isinstance(error, OSError):
        return words
    if _lost_readers(error):
        return (
            "Expected the processes that read images to last, found that one has ended or got no "
            f"shared memory ({words[:300]}); give the machine, or the container's /dev/shm, more, "
            "or read in this process (num_workers 0)."
        )
    return (
        f"{verb} failed in a way that it should not ({type(error).__name__}: {words[:300]}); what "
        "was written so far is whole. Run it again with --debug, and report what it prints."
    )


def _lost_readers(error: BaseException | None) -> bool:
    """Whether it began with a reading process; Lightning may have failed at what followed."""
    while error is not None:
        if "DataLoader worker" in str(error):
            return True
        # A full disk is another matter: this is room that a loader's processes share.
        full = getattr(error, "errno", None) == errno.ENOSPC
        if full and any("dataloader" in f.filename for f in extract_tb(error.__traceback__)):
            return True
        error = error.__context__
    return False


def _unknown(verb: str) -> str:
    nearest = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}?" if nearest else "see finetune --help."
    return f"Expected a verb ({', '.join(VERBS)}), found {verb!r}; {hint}"


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: finetune VERB [OPTIONS]\n\n"
        "Fine-tune image classifiers on small folders of images, and combine them.\n\n"
        f"{verbs}\n\n"
        "  finetune fit --data.root DIR            where DIR holds one folder of images a class\n"
        "  finetune VERB --help                    the options of a verb\n"
        "  finetune VERB ... --debug               the whole traceback where something fails"
    )
