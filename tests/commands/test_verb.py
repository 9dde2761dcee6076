"""What a verb takes is what its function takes: one signature, one docstring, the same refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Unpack

import numpy as np
import pytest

import finetune
from finetune.cli import VERBS
from finetune.commands.guest import Where
from finetune.commands.verb import Parser, Typed, parser_of, verb
from finetune.errors import UsageError
from finetune.spec.schema import whole

BY_LIGHTNING = {"fit", "validate", "test"}
# In Python the first two are functions of classifiers; a server takes the whole process.
OF_THE_COMMAND_ALONE = {"predict", "export", "serve"}
NAMES = sorted(set(VERBS) - BY_LIGHTNING)


def function_of(name: str) -> Callable[..., Any]:
    return getattr(import_module(f"finetune.commands.{name}"), name)


def parameters(parser: Parser) -> dict[str, str]:
    """Help by the name in Python."""
    return {name: each.settings["help"] for name, each in parser.parameters.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_documented_parameter(name: str) -> None:
    parser = parser_of(function_of(name))
    assert all(parameters(parser).values()), parameters(parser)
    assert parser.description.endswith((".", "`"))
    plain = [p for p, each in inspect.signature(function_of(name)).parameters.items()]
    assert set(plain) - {"quiet", "held_out"} <= set(parser.parameters)


@pytest.mark.parametrize("name", sorted(set(NAMES) - OF_THE_COMMAND_ALONE))
def test_every_verb_is_a_function_that_can_be_quiet(name: str) -> None:
    assert name in finetune.__all__
    assert getattr(finetune, name) is function_of(name)
    assert inspect.signature(function_of(name)).parameters["quiet"].default is False
    with pytest.raises(UsageError, match=f"Expected a setting of finetune {name}, found 'nothing'"):
        function_of(name)(nothing=3)


# Of one name with a setting of the images, but about something else.
OTHER_THINGS = {("ensemble", "seed"), ("explain", "class_names"), ("report", "folds")}


def test_options_of_the_images_are_spelled_alike_in_all_verbs() -> None:
    """What ``fit`` knows as ``--data.x`` is taken so by every verb that has it."""
    settings = inspect.signature(finetune.ImageFolderDataModule).parameters
    for name in NAMES:
        for parameter, each in parser_of(function_of(name)).parameters.items():
            if parameter in {*settings} - {"root"} and (name, parameter) not in OTHER_THINGS:
                assert f"--data.{parameter}" in each.names, (name, parameter)


class Shared(TypedDict, total=False):
    """Shared by several.

    Attributes:
        speed, noise: how fast.
        seed: of the images.
    """

    speed: float
    noise: Annotated[int, whole(0)]
    seed: Annotated[int, Typed(("--data.seed",))]


@verb
def example(
    things: Where | Sequence[Where],
    data: Annotated[Where | None, Typed(("--data.root",))] = None,
    *,
    kind: Literal["a", "b"] = "a",
    shares: Sequence[float] | None = None,
    names: Annotated[Sequence[str] | None, Typed(("--name",), repeated=True)] = None,
    many: Annotated[int, whole(1)] = 2,
    loud: bool = False,
    quiet: bool = False,
    **shared: Unpack[Shared],
) -> NotImportedHere:  # noqa: F821  # what it returns is nobody's business here
    """Do something.

    Args:
        things: paths.
        data: a folder.
        kind: of the thing.
        shares: of each.
        names: of some.
        many: how many.
        loud: or not.
        quiet: print nothing.
        shared: see there.
    """
    print("done")
    return {**locals(), **shared}


def test_what_is_typed_and_what_is_given_are_the_same() -> None:
    call = ["x", "y", "--data.root", "d", "--kind", "b", "--shares", "0.5", "1", "--name", "p"]
    call += ["--name", "q", "--many", "3", "--loud", "--speed", "2", "--data.seed=7"]
    typed = parser_of(example).typed(call)
    given = example(
        [Path("x"), "y"],
        Path("d"),
        kind="b",
        shares=np.array([0.5, 1]),
        names=("p", "q"),
        many=np.int64(3),
        loud=True,
        speed=2,
        seed=7,
        quiet=True,
    )
    assert typed == {name: given[name] for name in typed}
    assert typed["things"] == ["x", "y"]
    assert typed["data"] == "d"
    assert "noise" not in typed  # what is not given stays the function's own affair
    assert example(Path("x"), quiet=True)["things"] == ["x"]


@pytest.mark.parametrize(
    ("given", "typed", "message"),
    [
        ({"kind": "c"}, ["--kind", "c"], "Expected --kind to be one of 'a', 'b', found 'c'"),
        ({"many": 0}, ["--many", "0"], "--many to be a whole number of at least 1, found 0"),
        ({"many": 1.5}, ["--many", "1.5"], "Expected --many to be a whole number, found '1.5'"),
        ({"shares": ["x"]}, ["--shares", "x"], "Expected --shares to be a number, found 'x'"),
        ({"noise": -1}, ["--noise", "-1"], "--noise to be a whole number of at least 0, found -1"),
        ({"seed": "x"}, ["--data.seed", "x"], "--data.seed to be a whole number, found 'x'"),
        ({"loud": "no"}, None, "Expected --loud to be true or false, found 'no'"),
        ({"knid": "a"}, ["--knid", "a"], "did you mean"),
        ({"things": None}, None, "Expected things, found none"),
    ],
)
def test_both_are_refused_in_the_same_words(
    given: dict[str, Any], typed: list[str] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=r".") as error:
        example(**{"things": ["x"], **given})
    assert message in str(error.value)
    if typed is not None:
        with pytest.raises(UsageError) as error:
            parser_of(example).typed(["x", *typed])
        assert message in str(error.value)


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    example("x", quiet=True)
    assert capsys.readouterr().out == ""
    example("x")
    assert capsys.readouterr().out == "done\n"
