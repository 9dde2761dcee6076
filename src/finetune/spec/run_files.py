"""What the JSON files of a run folder hold, whoever wrote them."""

from __future__ import annotations

from finetune.spec.schema import (
    by_name,
    every,
    number,
    one_of,
    optional,
    record,
    scalar,
    several,
    text,
    truth,
)

_ON_A_SERVER = text(128, r"[^/\\#?%:\x00-\x1f\x7f]+", "a name without slashes")

# tracking.json: which run on Weights & Biases is about this one.
TRACKING = record(
    {"id": _ON_A_SERVER, "project": _ON_A_SERVER, "mode": one_of("online", "offline")},
    entity=optional(_ON_A_SERVER),
)

# metrics.json: figures by stage; those of a fit say whether it came to its end.
METRICS = every(
    by_name(by_name(scalar)),
    record(
        {},
        fit=record({}, seconds=number(0), finished=truth),
        test=record({}, ms_per_image=number(0)),
    ),
)

# members.json: the options of each fit of a group, and those that all share.
_OPTIONS = several(text(says="an option"), most=1000)
MEMBERS = record({"members": by_name(_OPTIONS, r"\w[\w.-]*", 10_000)}, shared=_OPTIONS)
