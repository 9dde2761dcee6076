"""Three roles of held-out images: ``val`` picks, ``calib`` fits, ``test`` reports.

A figure measured on images that chose a member, or fitted a threshold, flatters. So the val
images fall, class by class and by a hash of their content, into a half that picks members and
coefficients and a half that calibrates; what was used is noted in the file and refused afterwards.
(The checkpoint of a single fit is chosen on all of val; that choice is not counted here.)
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from finetune.errors import CalibrationError
from finetune.spec.choices import Share

Role = Literal["pick", "calibrate"]
Roles = Mapping[str, Sequence[str]]

SAMPLED_DIGITS = 16  # of the ids in files of format 1


def in_whole_ids(roles: Roles, paths: Sequence[str], ids: Sequence[str]) -> Roles:
    """Roles by ids of whole contents, where a file of format 1 noted them by samples.

    Args:
        roles: as kept in a checkpoint.
        paths, ids: of the images that are to be used now: only these can be translated.
    """
    sampled = {identity for used in roles.values() for identity in used}
    if all(len(identity) != SAMPLED_DIGITS for identity in sampled):
        return roles
    old_ids = [_sampled_id(Path(path)) for path in paths]
    translated = {}
    for role, used in roles.items():
        had = set(used)
        found = [new for old, new in zip(old_ids, ids, strict=True) if old in had]
        translated[role] = [*used, *found]
    return translated


def _sampled_id(path: Path) -> str:
    """Format 1's id: of the size and 16 KiB from either end."""
    with path.open("rb") as file:
        head = file.read(16384)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 16384, 0))
        tail = file.read(16384)
    content = str(size).encode() + head + tail
    return hashlib.blake2b(content, digest_size=SAMPLED_DIGITS // 2).hexdigest()


def halves(ids: Sequence[str], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Indexes of the images that pick and of those that calibrate; stratified, repeatable.

    The halves depend on the images alone, not on their order, and equal images stay together
    wherever that is possible.
    """
    order = sorted(range(len(ids)), key=lambda index: (labels[index], ids[index]))
    pick, calibrate = order[0::2], order[1::2]
    moved = {ids[index] for index in pick} & {ids[index] for index in calibrate}
    pick += [index for index in calibrate if ids[index] in moved]
    return sorted(pick), sorted(index for index in calibrate if ids[index] not in moved)


def of_role(ids: Sequence[str], labels: Sequence[int], role: Role, share: Share) -> list[int]:
    """Indexes of the images for a role: its half, or all of them where that is asked for."""
    if share == "all":
        return list(range(len(ids)))
    pick, calibrate = halves(ids, labels)
    return pick if role == "pick" else calibrate


def refuse_reuse(
    roles: Roles, ids: Iterable[str], purpose: str, *, allow_reuse: bool = False
) -> bool:
    """Whether images are used again; an error unless that is allowed, and then a warning.

    Args:
        roles: what was used so far, as kept in a checkpoint.
        ids: the images to be used now.
        purpose: for example ``"calibrate"`` or ``"test"``; its own earlier use is no reuse.
        allow_reuse: go on, and say so.

    Raises:
        CalibrationError: some of the images have had another role.
    """
    wanted = set(ids)
    for role, used in roles.items():
        again = wanted & set(used)
        if role == purpose or not again:
            continue
        message = (
            f"Expected images to {purpose} that had no other role, found {len(again)} of "
            f"{len(wanted)} that helped to {role}"
        )
        if not allow_reuse:
            raise CalibrationError(f"{message}; use others, or allow reuse knowingly.")
        warnings.warn(f"{message}; the figures will flatter.", stacklevel=3)
        return True
    return False


def with_role(roles: Roles, role: Role, ids: Iterable[str]) -> dict[str, list[str]]:
    """The roles with further images, as plain lists for a checkpoint."""
    noted = {name: list(used) for name, used in roles.items()}
    noted[role] = sorted({*noted.get(role, ()), *ids})
    return noted
