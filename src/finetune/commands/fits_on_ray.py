"""Members of a group as tasks of Ray, each in a process of its own on a node of a cluster.

A task whose node or process goes is begun again elsewhere, and goes on from the member's last
checkpoint. Nothing of a member is kept in Ray: its run folder is what another node sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from finetune.prediction.on_ray import cluster, shares

RETRIES = 3  # of a member whose node or process has gone; not of one that has failed
Member = Callable[[str], str | None]


def fit_on_ray(
    names: Sequence[str], fit: Member, address: str | None, *, on_cpu: bool
) -> dict[str, str | None]:
    """Why each member failed, or None.

    Args:
        names: of the members.
        fit: fits or resumes the one of this name, and says why it failed; it is sent to the nodes.
        address: of a cluster; None starts one on this machine, which ends with the work.
        on_cpu: leave the accelerators alone; else each member has one.

    Raises:
        UsageError: no cluster there.
    """
    if not names:
        return {}
    with cluster(address, members_speak=True) as ray:
        _, of_each = shares("auto", ray.nodes(), blocks=len(names), on_cpu=on_cpu)
        # max_calls: a process of its own for each, as without Ray.
        task = ray.remote(max_calls=1, max_retries=RETRIES, **of_each)(_fit_at)
        start = os.getcwd()
        given = {name: task.options(name=name).remote(fit, name, start) for name in names}
        problems: dict[str, str | None] = {}
        for name, promised in given.items():
            try:
                problems[name] = ray.get(promised)
            except ray.exceptions.RayError as error:
                problems[name] = " ".join(str(error).split())[:300]
    return problems


def _fit_at(fit: Member, name: str, start: str) -> str | None:
    with suppress(OSError):  # another machine may not have it; then paths are absolute
        os.chdir(start)
    return fit(name)
