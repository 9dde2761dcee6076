import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import NetworkError
from finetune.spec.network import NetworkSpec

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(min_size=1, max_size=6), plain, max_size=4)


@given(arguments, st.none() | st.text(min_size=1))
def test_a_spec_comes_back_from_its_plain_values(arguments: dict, tag: str | None) -> None:
    spec = NetworkSpec("resnet50", arguments, tag)
    again = NetworkSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.key == spec.key
    assert again.to_dict() == spec.to_dict()


@given(arguments)
def test_the_order_of_arguments_decides_nothing(arguments: dict) -> None:
    backwards = dict(reversed(arguments.items()))
    assert NetworkSpec("a", arguments).key == NetworkSpec("a", backwards).key


def test_the_tag_decides_nothing_and_any_argument_something() -> None:
    spec = NetworkSpec("resnet50", {"in_chans": 3}, "a1_in1k")
    assert spec == NetworkSpec("resnet50", {"in_chans": 3}, "tv_in1k")
    assert hash(spec) == hash(NetworkSpec("resnet50", {"in_chans": 3, "global_pool": None}))
    others = [
        NetworkSpec("resnet51", {"in_chans": 3}),
        NetworkSpec("resnet50", {"in_chans": 1}),
        NetworkSpec("resnet50", {"in_chans": 3, "global_pool": "max"}),
        NetworkSpec("resnet50", {"in_chans": 3, "act_layer": "gelu"}),
    ]
    assert len({spec, *others}) == 5


def test_lists_and_tuples_are_one() -> None:
    given = {"img_size": (224, 200), "layers": ((1, 2), [3])}
    assert NetworkSpec("a", given) == NetworkSpec(
        "a", {"img_size": [224, 200], "layers": [[1, 2], [3]]}
    )


def test_what_is_no_plain_value_has_no_key() -> None:
    with pytest.raises(NetworkError, match="name what timm knows by a name"):
        _ = NetworkSpec("resnet50", {"act_layer": object}).key


def test_it_says_what_it_is() -> None:
    assert str(NetworkSpec("resnet50", {"in_chans": 3})) == "resnet50"
    spec = NetworkSpec("resnet50", {"in_chans": 1, "global_pool": "max"}, "a1_in1k")
    assert str(spec) == "resnet50 (global_pool=max, in_chans=1)"
    assert spec.name == "resnet50.a1_in1k"
    assert spec.options == {"global_pool": "max"}
