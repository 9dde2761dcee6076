import pytest
import torch

from finetune.combining.held_out import HeldOut, out_of_fold
from finetune.errors import CheckpointMismatchError


def fold(names: str, seed: int, *, members: int = 1) -> HeldOut:
    generator = torch.Generator().manual_seed(seed)
    return HeldOut(
        paths=tuple(names),
        ids=tuple(names),
        labels=torch.arange(len(names)) % 3,
        member_logits=torch.rand(members, len(names), 3, generator=generator),
        seconds=(1.0,) * members,
    )


def test_every_image_is_answered_once_by_who_did_not_see_it() -> None:
    first, second = fold("abc", 0), fold("de", 1)
    together = out_of_fold([first, second])
    assert together.ids == tuple("abcde")
    assert together.labels.tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(together.member_logits[0, :3], first.member_logits[0])
    assert torch.equal(together.member_logits[0, 3:], second.member_logits[0])
    assert together.seconds == (2.0,)


def test_common_images_and_several_members_are_refused() -> None:
    with pytest.raises(CheckpointMismatchError, match="1 common"):
        out_of_fold([fold("abc", 0), fold("cd", 1)])
    with pytest.raises(CheckpointMismatchError, match=r"\[1, 2\] answers"):
        out_of_fold([fold("abc", 0), fold("de", 1, members=2)])


def test_an_image_given_twice_in_one_fold_is_not_in_two() -> None:
    together = out_of_fold([fold("aab", 0), fold("cd", 1)])
    assert together.ids == tuple("aabcd")


def test_the_key_tells_images_and_their_order_apart() -> None:
    assert fold("abc", 0).key == fold("abc", 1).key
    assert fold("abc", 0).key != fold("acb", 0).key
