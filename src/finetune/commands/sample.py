"""``finetune sample``: write the embedded sample folder of photographs."""

from __future__ import annotations

from pathlib import Path

from finetune.commands.guest import Where
from finetune.commands.outputs import checked_output
from finetune.commands.verb import verb


@verb
def sample(folder: Where, *, quiet: bool = False) -> Path:
    """Write the embedded sample folder: crops of 12 photographs.

    Args:
        folder: a new folder.
        quiet: print nothing.

    Returns:
        The folder.

    Raises:
        DataError: something else lies there, or the photographs are not installed.
    """
    from finetune.data.sample import write_sample

    # What is there is refused by what it holds: the sample itself may be there already.
    checked_output(folder, endings=(), overwrite=True, option="the folder")
    write_sample(folder)
    print(f"the sample folder lies in {folder}")
    return Path(folder)
