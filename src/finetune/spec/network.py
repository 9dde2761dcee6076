"""Which network exactly: everything that decides what given weights compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from finetune.errors import NetworkError

# The argument that is ours and not timm's: names of the stages that the final layer reads as well.
STAGES = "stages"


@dataclass(frozen=True, slots=True, eq=False)
class NetworkSpec:
    """An architecture with its arguments; enough to build the network, asking nobody.

    Two specs are equal where their keys are: they describe the same computation, whichever weights
    were published under which tag. An argument that is given counts as another than a default that
    is not, even if the two mean the same: better one forward pass too many than a wrong answer.

    Attributes:
        architecture: timm's own name of it, without a tag, or that of a baseline.
        arguments: what the architecture is built with: ``in_chans``, ``img_size`` (in pixels)
            where it is built for one size, pooling, activation, ... and :data:`STAGES`. Classes
            and dropout are none of them: they belong to a fit.
        tag: of the published weights it started from; it decides nothing.
    """

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tag: str | None = None

    def __post_init__(self) -> None:
        # timm ignores an argument that is None.
        arguments = {name: value for name, value in self.arguments.items() if value is not None}
        object.__setattr__(self, "arguments", _canonical(arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSpec) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> str:
        """A hash of all that decides what given weights compute.

        Raises:
            NetworkError: an argument that is no plain value.
        """
        try:
            text = json.dumps([self.architecture, self.arguments], sort_keys=True)
        except TypeError as error:
            raise NetworkError(
                f"Expected text, numbers and lists as options of {self.architecture}, found others "
                f"({error}); name what timm knows by a name, such as act_layer: gelu."
            ) from error
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def reading(self, stages: Sequence[str]) -> NetworkSpec:
        """The same with a final layer that reads these stages."""
        return replace(self, arguments={**self.arguments, STAGES: list(stages)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint with it loads with ``weights_only=True``."""
        return {
            "architecture": self.architecture,
            "arguments": _canonical(self.arguments),
            "tag": self.tag,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """The inverse of :meth:`to_dict`."""
        return cls(str(values["architecture"]), dict(values["arguments"]), values.get("tag"))

    @property
    def name(self) -> str:
        """The architecture, with the tag where there is one: what timm calls it."""
        return self.architecture if self.tag is None else f"{self.architecture}.{self.tag}"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments beside channels and size: what ``network_options`` may hold."""
        return {k: v for k, v in self.arguments.items() if k not in ("in_chans", "img_size")}

    def __str__(self) -> str:
        told = {k: v for k, v in sorted(self.arguments.items()) if (k, v) != ("in_chans", 3)}
        given = ", ".join(f"{name}={value}" for name, value in told.items())
        return f"{self.architecture} ({given})" if given else self.architecture


def _canonical(value: Any) -> Any:
    """The same with lists and dictionaries of its own, as files give them back."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    return [_canonical(item) for item in value] if isinstance(value, tuple | list) else value
