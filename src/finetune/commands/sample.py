"""``finetune sample``: write the embedded sample folder of photographs."""

from __future__ import annotations

from finetune.commands.outputs import checked_output
from finetune.commands.parsing import Parser


def main(arguments: list[str]) -> int:
    """Write ``DIR/train|val|test/<material>/*.png``."""
    parser = Parser(
        prog="finetune sample",
        description="Write the embedded sample folder: crops of 12 photographs.",
    )
    parser.add_argument("folder", help="a new folder")
    options = parser.parse_args(arguments)

    from finetune.data.sample import write_sample

    # What is there is refused by what it holds: the sample itself may be there already.
    checked_output(options.folder, endings=(), overwrite=True, option="the folder")
    write_sample(options.folder)
    print(f"the sample folder lies in {options.folder}")
    return 0
