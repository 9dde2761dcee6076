"""Files of settings and figures that strangers made: values within bounds, or one line."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.documents import read_json, read_yaml
from finetune.errors import UsageError
from finetune.spec.run_files import MEMBERS, METRICS, TRACKING
from finetune.spec.schema import plain

# Each line repeats the one before nine times: 9 ** 9 values.
BOMB = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
HOSTILE = {
    "aliases without end": BOMB.encode(),
    "an alias to itself": b"a: &a [*a]",
    "UTF-16": "a: 1".encode("utf-16"),
    "Latin-1": "name: Käfer".encode("latin-1"),
    "binary": bytes(range(256)),
    "zeros": b"a: \0",
    "1,000 brackets": b"a: " + b"[" * 1000 + b"]" * 1000,
    "1,000 names": b"".join(b" " * n + b"a:\n" for n in range(1000)),
    "a Python object": b"a: !!python/object/apply:os.system [ls]",
    "bytes": b"a: !!binary aGk=",
    "a key twice": b"a: 1\na: 2",
    "a list": b"[1, 2]",
    "text": b"hello",
    "two documents": b"a: 1\n---\nb: 2",
    "a list as a key": b"? [1, 2]\n: 3",
    "2 MB": b"a: " + b"x" * 2_000_000,
    "100,000 digits": b"a: " + b"9" * 100_000,
    "an unclosed bracket": b"a: [1",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_settings_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.yaml") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("read", [read_yaml, lambda path: read_json(path, plain())])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "nothing"):
        with pytest.raises(UsageError, match=r"Expected a small text file"):
            read(path)


def test_dates_stay_text_and_few_aliases_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "name: 2026-01-01\nbase: &base {lr: 1}\nother: {<<: *base, wd: 2}\nsteps: {0: 1}"
    )
    assert read_yaml(path) == {
        "name": "2026-01-01",
        "base": {"lr": 1},
        "other": {"lr": 1, "wd": 2},
        "steps": {0: 1},
    }


GOOD = {
    TRACKING: {"id": "a", "project": "b", "entity": None, "mode": "offline"},
    METRICS: {"fit": {"seconds": 1.5, "finished": True}, "val": {"nll": float("nan"), "n": "x"}},
    MEMBERS: {"members": {"seed-0": ["--seed=0"]}, "shared": ["--data.root=x"]},
}
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("check", GOOD)
@given(value=ODD)
def test_run_files_of_other_types_are_refused_and_nothing_else_happens(check, value) -> None:
    def mutated(content):
        yield value
        for key in content if isinstance(content, dict) else ():
            yield {**content, key: value}
            for inner in mutated(content[key]):
                yield {**content, key: inner}

    check(GOOD[check])
    for content in mutated(GOOD[check]):
        try:
            check(content)
        except ValueError as error:
            assert "expected" in str(error)  # noqa: PT017


def test_a_hostile_json_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for content in ("[" * 500_000, '{"a": ' * 100_000, "nul", '{"fit": []}', '{"fit": {"a": []}}'):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"metrics\.json"):
            read_json(path, METRICS)
    path.write_text(json.dumps(GOOD[METRICS]))
    assert read_json(path, METRICS)["fit"]["seconds"] == 1.5
