"""Averages of state dicts: exact at their ends, streaming, and refused where they mean nothing.

One accumulator in float64 takes the members one after another, so memory does not depend on their
number. Floating tensors are averaged and cast back to their own type; integer and boolean tensors
(``num_batches_tracked``, index tables) are copied, never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from finetune.errors import CheckpointMismatchError, UsageError

StateDict = Mapping[str, Tensor]

PIECE = 2**15


def normalised_coefficients(
    coefficients: Sequence[float] | None, number_of_members: int
) -> list[float]:
    """Mixing coefficients that are at least 0 and sum to 1; equal ones for None.

    Raises:
        UsageError: another number than members, a negative or infinite one, or all zero.
    """
    if number_of_members < 1:
        raise UsageError("Expected at least one member, found none; name at least one checkpoint.")
    if coefficients is None:
        return [1.0 / number_of_members] * number_of_members
    values = [float(value) for value in coefficients]
    if len(values) != number_of_members:
        raise UsageError(
            f"Expected one coefficient for each of {number_of_members} members, "
            f"found {len(values)}; give one a member, in their order."
        )
    total = math.fsum(values)
    if any(not math.isfinite(value) or value < 0 for value in values) or not total > 0:
        raise UsageError(
            f"Expected coefficients of at least 0 that are not all 0, found {values}; "
            "leave a member out by the coefficient 0."
        )
    return values if total == 1.0 else [value / total for value in values]


class RunningAverage:
    """The weighted sum of state dicts that come one after another.

    Coefficients are used as given: for an average they must sum to 1. Of integer tensors the copy
    comes from the member with the largest coefficient (the larger value among equal ones), so the
    result does not depend on the members' order. Names that share one tensor in every member share
    one in the result.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._copies: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._owners: dict[str, str] = {}
        self._largest = -1.0
        self._first_source = ""

    def add(self, state_dict: StateDict, coefficient: float, *, source: str = "") -> None:
        """Add one member; ``source`` names it in errors.

        Raises:
            CheckpointMismatchError: other names or shapes than the first member's, or a value that
                is not finite.
        """
        self._check(state_dict, source)
        self._note_sharing(state_dict)
        for name, tensor in state_dict.items():
            self._dtypes[name] = torch.promote_types(
                self._dtypes.get(name, tensor.dtype), tensor.dtype
            )
            if tensor.is_floating_point() or tensor.is_complex():
                if not self._accumulate(name, tensor.detach(), coefficient):
                    raise CheckpointMismatchError(
                        f"Expected finite numbers, found NaN or infinity in {name} of "
                        f"{source or 'a member'}; that fit diverged: leave its checkpoint out."
                    )
            else:
                self._copy(name, tensor.detach(), coefficient)
        self._largest = max(self._largest, coefficient)

    def result(self) -> dict[str, Tensor]:
        """The average, each tensor in its own type; the accumulator is empty afterwards."""
        averaged: dict[str, Tensor] = {}
        for name in self._shapes:
            owner = self._owners[name]
            if owner in averaged:
                averaged[name] = averaged[owner]
            elif name in self._copies:
                averaged[name] = self._copies.pop(name)
            else:
                averaged[name] = self._sums.pop(name).to(self._dtypes[name])
        self.__init__()  # type: ignore[misc]
        return averaged

    def _check(self, state_dict: StateDict, source: str) -> None:
        source = source or "a member"
        if not self._shapes:
            self._shapes = {name: tensor.shape for name, tensor in state_dict.items()}
            self._first_source = source
        if state_dict.keys() != self._shapes.keys():
            differing = sorted(state_dict.keys() ^ self._shapes.keys())
            raise CheckpointMismatchError(
                f"Expected the tensors of {self._first_source}, found {len(differing)} others in "
                f"{source}: {differing[:5]}; average checkpoints of one backbone only."
            )
        for name, tensor in state_dict.items():
            if tensor.shape != self._shapes[name]:
                raise CheckpointMismatchError(
                    f"Expected {name} of shape {tuple(self._shapes[name])} as in "
                    f"{self._first_source}, found {tuple(tensor.shape)} in {source}; "
                    "average checkpoints of one backbone and one set of classes only."
                )

    def _note_sharing(self, state_dict: StateDict) -> None:
        owners = shared_names(state_dict)
        if not self._owners:
            self._owners = owners
            return
        # Shared in every member so far or not at all: a name keeps its owner only if both agree.
        self._owners = {
            name: owner if owners[name] == owners[owner] else name
            for name, owner in self._owners.items()
        }

    def _accumulate(self, name: str, tensor: Tensor, coefficient: float) -> bool:
        """Add a tensor; returns whether it was finite."""
        if coefficient == 0.0 and name in self._sums:
            # Not added, so that coefficients (1, 0) return the first member bit for bit.
            return bool(tensor.isfinite().all())
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        starts_anew = name not in self._sums or self._largest == 0.0
        if starts_anew:
            self._sums[name] = torch.empty(tensor.shape, dtype=wide)
        sums, values = self._sums[name].view(-1), tensor.reshape(-1)
        finite = True
        # In pieces that stay in the processor's cache, too small for torch to start threads.
        for start in range(0, len(values), PIECE):
            piece = values[start : start + PIECE].to(wide)
            finite &= bool(piece.sum().isfinite())  # NaN and infinity survive a sum
            here = sums[start : start + PIECE]
            if starts_anew:
                torch.mul(piece, coefficient, out=here)
            else:
                here.add_(piece, alpha=coefficient)
        return finite or bool(tensor.isfinite().all())

    def _copy(self, name: str, tensor: Tensor, coefficient: float) -> None:
        if name not in self._copies or coefficient > self._largest:
            self._copies[name] = tensor.clone()
        elif coefficient == self._largest:
            self._copies[name] = torch.maximum(self._copies[name], tensor)


def shared_names(state_dict: StateDict) -> dict[str, str]:
    """For each name the first name that holds the very same tensor (itself where none does)."""
    first: dict[tuple[object, ...], str] = {}
    owners = {}
    for name, tensor in state_dict.items():
        place = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        owners[name] = first.setdefault(place, name) if tensor.numel() else name
    return owners


def average_state_dicts(
    state_dicts: Iterable[StateDict],
    coefficients: Sequence[float] | None = None,
    *,
    sources: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Average state dicts, ``sum_i c_i theta_i`` with ``sum_i c_i = 1``.

    ``state_dicts`` may be a generator when ``coefficients`` are given: one is in memory at a time.
    The average of one is itself bit for bit, and so is the average with coefficients (1, 0, ...).

    Raises:
        UsageError: impossible coefficients.
        CheckpointMismatchError: members that do not fit together, or are not finite.
    """
    if coefficients is None:
        state_dicts = list(state_dicts)
        coefficients = normalised_coefficients(None, len(state_dicts))
    else:
        coefficients = normalised_coefficients(coefficients, len(coefficients))
    names = sources or [f"member {index}" for index in range(len(coefficients))]
    average = RunningAverage()
    for state_dict, coefficient, name in zip(state_dicts, coefficients, names, strict=True):
        average.add(state_dict, coefficient, source=name)
    return average.result()


def interpolate_state_dicts(
    start: StateDict, end: StateDict, coefficient: float
) -> dict[str, Tensor]:
    """``(1 - coefficient) * start + coefficient * end``, bit for bit an end at 0 and at 1.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), 2022.

    Raises:
        UsageError: a coefficient outside [0, 1].
    """
    if not 0.0 <= coefficient <= 1.0:
        raise UsageError(
            f"Expected an interpolation coefficient in [0, 1], found {coefficient}; "
            "0 is the first checkpoint, 1 the second."
        )
    return average_state_dicts([start, end], [1.0 - coefficient, coefficient])
