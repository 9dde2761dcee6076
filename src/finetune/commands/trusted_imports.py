"""Which modules a value may name: options and files alike, a closed list and what was added to it.

``class_path`` in a configuration file imports a module and builds a class of it, and such a file
may come from a stranger: the ``config.yaml`` of a downloaded run, for example.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings

from finetune.documents import check_yaml
from finetune.errors import UsageError

ROOTS = ("finetune", "lightning", "torch", "timm", "torchmetrics", "wandb")
# Beneath these roots, but they fetch, load or run other code by a path or an address.
NEVER = (
    "finetune.cli",
    "finetune.commands",
    "torch.hub",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "wandb.cli",
    "wandb.sdk.launch",
)
_added: set[str] = set()
_load_yaml = get_loader("yaml")


def trust(imports: Sequence[str] = ()) -> None:
    """Let values name classes of the closed list and of these modules only, until called again.

    The list holds for the parsers of the whole process; YAML is bounded for them as well.

    Args:
        imports: modules that the user named on the command line, where no file can add to them.

    Raises:
        UsageError: no name of a module.
    """
    for name in imports:
        if not all(part.isidentifier() for part in name.split(".")) or name == "jsonargparse":
            raise UsageError(
                f"Expected a module after --imports, such as mylayers, found {name!r}."
            )
    set_parsing_settings(
        import_path_denylist=["*", *NEVER, *_added],
        import_path_allowlist=[*ROOTS, *imports],
        instantiate_subclass_spec_in_any=False,
    )
    _added.update(set(imports) - set(ROOTS))
    set_loader("yaml", _load_within_bounds, (yaml.YAMLError,))


def denied_import(message: str) -> str | None:
    """The parser's word about a module that is not on the list, in our words."""
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied is None:
        return None
    root = denied[1].partition(".")[0]
    return (
        f"Expected a class of {', '.join(ROOTS)}, found {denied[1]}; if it is meant and its code "
        f"is trusted, add --imports {root if root not in ROOTS else denied[1]}."
    )


def _load_within_bounds(document: str) -> object:
    check_yaml(document)
    return _load_yaml(document)
