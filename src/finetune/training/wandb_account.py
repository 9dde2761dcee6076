"""Where figures may go: to the account of the key at hand, or to an entity that the user named.

A run folder or a configuration file may come from a stranger. What such a file says of Weights &
Biases is a wish: an entity is used only where it is the account's own, its teams included, and an
earlier run is continued only where this account made it; both are asked of the server.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune.errors import UsageError

Mode = Literal["online", "offline", "disabled"]
TIMEOUT = 20  # seconds for a question to the server
REMEDY = "name it with --track-to ENTITY if figures are meant to go there"


@dataclass(frozen=True, slots=True)
class Destination:
    """A run on Weights & Biases.

    Attributes:
        project: in which the run lies.
        entity: user or team that the project belongs to; None for the account's default.
        id: of the run; None for a new one.
        mode: online, or offline for files that ``wandb sync`` sends later.
    """

    project: str
    entity: str | None = None
    id: str | None = None
    mode: Mode = "online"

    def __str__(self) -> str:
        where = "/".join((self.entity or "(your default entity)", self.project, self.id or "(new)"))
        return f"{where} ({'sent now' if self.mode == 'online' else 'kept here'})"


def mode_here(wanted: Mode) -> Mode:
    """Online only where both the settings and the environment want it."""
    said = os.environ.get("WANDB_MODE", "online")
    if said == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    return "offline" if said in ("offline", "dryrun") and wanted == "online" else wanted


def has_account() -> bool:
    """Whether Weights & Biases would not ask for a key."""
    import wandb

    return bool(wandb.api.api_key)


def permitted(wish: Destination, named: Collection[str] = (), *, earlier: bool) -> Destination:
    """The destination that a file wishes, as far as it is the user's own.

    Offline nobody can be asked: the entity of a file is dropped, so that ``wandb sync`` sends to
    the account's default, unless the user named it.

    Args:
        wish: what a file says; no network is used unless its mode is online.
        named: entities that the user named, on the command line or as ``WANDB_ENTITY``.
        earlier: the run exists and is to be continued, so this account must have made it.

    Raises:
        UsageError: another account's entity or run, or a server that does not answer.
    """
    if wish.entity is not None and wish.entity in {*named, os.environ.get("WANDB_ENTITY")}:
        return wish
    if wish.mode != "online":
        return replace(wish, entity=None)
    try:
        return _own(wish, earlier=earlier)
    except UsageError:
        raise
    except Exception as error:  # whatever the network, the server and the client find to say
        raise UsageError(
            f"Expected Weights & Biases to say whether {wish} is your own, found no answer "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "try again, or set WANDB_MODE=offline."
        ) from error


def _own(wish: Destination, *, earlier: bool) -> Destination:
    import wandb

    api = wandb.Api(timeout=TIMEOUT)
    viewer = api.viewer
    entity = wish.entity or viewer.entity
    if entity not in {viewer.entity, viewer.username, *viewer.teams} - {None}:
        raise UsageError(
            f"Expected a Weights & Biases entity of your own ({viewer.username}), found {entity!r} "
            f"in a file of the run; {REMEDY}."
        )
    if earlier and (author := _author(api, f"{entity}/{wish.project}/{wish.id}")) != (
        viewer.username
    ):
        raise UsageError(
            f"Expected a Weights & Biases run of your own ({viewer.username}), found "
            f"{entity}/{wish.project}/{wish.id} of {author or 'nobody'} in tracking.json; {REMEDY}."
        )
    return replace(wish, entity=entity)


def _author(api: Any, run: str) -> str | None:
    """Who made a run; None where there is none."""
    import wandb

    try:
        return str(api.run(run).user.username)
    except (wandb.errors.CommError, ValueError):  # the client's words for "no such run"
        return None
