"""A public function as a verb: its signature gives the options, its docstring their help.

What has no default is given by its place, all else by an option of its name, as jsonargparse reads
it; :class:`Typed` says what is spelled otherwise, a check of :mod:`finetune.spec.schema` beside the
type which values are taken. So command and function take the same, and refuse it in the same words.
"""

from __future__ import annotations

import functools
import inspect
import types
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import or_
from typing import Any, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from docstring_parser import Docstring, parse
from jsonargparse import ArgumentParser

from finetune.commands.guest import as_guest
from finetune.commands.parsing import Help, explain, plain_value, take, unknown_setting
from finetune.commands.terminal import warnings_in_one_line
from finetune.errors import UsageError
from finetune.spec.schema import Check, optional, truth
from finetune.spec.settings import check_settings


@dataclass(frozen=True, slots=True)
class Typed:
    """How a parameter is typed on the command line, where that is not ``--its-name``.

    Attributes:
        names: of the option, the one that messages name first.
        metavar: what stands for its value in the help.
        required: on the command line; a function can do without.
        repeated: several values are the option several times.
    """

    names: tuple[str, ...] = ()
    metavar: str | None = None
    required: bool = False
    repeated: bool = False


WORDS = {"true": True, "false": False}
SEVERAL = {"nargs": "+", "action": "extend"}
P = ParamSpec("P")
R = TypeVar("R")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of Python refuse what the command refuses, and be the caller's guest.

    ``quiet=True`` prints nothing. :func:`run` calls the function below, for the command.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = inspect.signature(function).bind_partial(*args).arguments
        quiet = bool(kwargs.get("quiet", False))
        named = {name: value for name, value in kwargs.items() if name != "quiet"}
        values = parser_of(function, for_python=True).checked({**given, **named})
        with as_guest(quiet=quiet):
            return function(**values, quiet=quiet)  # type: ignore[arg-type, call-arg]

    return call


def run(function: Callable[..., R], arguments: Sequence[str]) -> R:
    """Call the function of a verb with what was typed; its warnings are shown in one line each."""
    values = parser_of(function).typed(arguments)
    with warnings_in_one_line():
        return inspect.unwrap(function)(**values)


class _Parameter(NamedTuple):
    """One of a function, as a parser takes it."""

    names: list[str]
    kind: Any
    several: bool
    check: Check | None
    settings: dict[str, Any]


class Parser(ArgumentParser):
    """jsonargparse without abbreviations, with errors in one line.

    ``--val-fraction`` and ``--val_fraction`` are the same option, for nobody remembers which.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Help, **settings)
        self.parameters: dict[str, _Parameter] = {}

    def add_parameter(self, place: Any, name: str, parameter: _Parameter) -> None:
        """One parameter of the function into the parser or one of its groups."""
        self.parameters[name] = parameter
        place.add_argument(*parameter.names, **parameter.settings)

    def typed(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The function's arguments, from what was typed."""
        alike = {_dashed(option): option for option in self._option_string_actions}
        spelled = []
        for argument in self._as_here(arguments):
            name, sign, value = argument.partition("=")
            if name.startswith("--") and name not in self._option_string_actions:
                name = alike.get(_dashed(name), name)
            spelled.append(name + sign + value)
        return self._in_range(vars(self.parse_args(spelled)))

    def _as_here(self, arguments: Sequence[str]) -> Sequence[str]:
        """What ``fit`` takes as an option with a value, as the verb has it."""
        for each in self.parameters.values():
            if each.names == ["data"]:
                arguments, root = take(arguments, "--data.root")
                arguments = arguments if root is None else [*arguments, root]
            elif each.kind is bool and len(each.names) == 2:
                arguments, value = take(arguments, each.names[1])
                if value is not None:
                    check_settings({each.names[1]: WORDS.get(value, value)}, {each.names[1]: truth})
                arguments = [*arguments, each.names[0]] if value == "true" else arguments
        return arguments

    def checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """The function's arguments, from values by name.

        Raises:
            UsageError: a name or a value that the command does not have.
        """
        values = {}
        for name, value in given.items():
            if name not in self.parameters:
                raise unknown_setting(self.prog.removeprefix("finetune "), name, self.parameters)
            if value is not None:
                plain = plain_value(value)
                alone = self.parameters[name].several and not isinstance(plain, list)
                values[name] = [plain] if alone else plain
        return self._in_range(vars(self.parse_object(values)))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise instead of printing the usage and leaving the process."""
        typed = {name: parameter.names[0] for name, parameter in self.parameters.items()}
        raise UsageError(explain(message, self.prog, self._option_string_actions, typed)) from ex

    def _in_range(self, values: dict[str, Any]) -> dict[str, Any]:
        for name, value in values.items():
            names, *_, check, _ = self.parameters[name]
            if check is not None:
                check_settings({names[0]: value}, {names[0]: optional(check)})
        return values


def parser_of(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    without: Iterable[str] = ("quiet",),
    for_python: bool = False,
) -> Parser:
    """The parser of a verb.

    Args:
        function: typed and documented; options that several verbs share are its ``**`` keywords, a
            ``TypedDict``.
        name: of the verb, where it is not the function's.
        without: parameters that are no options.
        for_python: nothing is required that the function can do without.
    """
    function = inspect.unwrap(function)
    described = parse(function.__doc__ or "")
    parser = Parser(
        prog=f"finetune {name or function.__name__.strip('_')}",
        description=_unquoted(f"{described.short_description} {described.long_description or ''}"),
    )
    parameters = inspect.signature(function).parameters
    wanted = {name: each.annotation for name, each in parameters.items() if name not in without}
    # What it returns need not be imported for its parser.
    hints = get_type_hints(
        types.SimpleNamespace(__annotations__=wanted), function.__globals__, include_extras=True
    )
    group: Any = parser
    shared: dict[str, Any] = {}
    if parameters[[*hints][-1]].kind is inspect.Parameter.VAR_KEYWORD:
        options = get_args(hints.popitem()[1])[0]
        of_all = parse(options.__doc__ or "")
        group = parser.add_argument_group(_unfinished(of_all.short_description))
        shared = get_type_hints(options, include_extras=True)
    for name, hint in hints.items():
        given = parameters[name]
        by_place = given.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        found = _parameter(name, hint, given.default, described, by_place=by_place)
        if for_python and given.default is not inspect.Parameter.empty:
            found.settings.pop("required", None)
            if found.settings.get("action") == "append":  # takes no list as a value
                found.settings.update(SEVERAL)
        of_the_images = found.names[0].startswith("--data.")
        parser.add_parameter(group if of_the_images else parser, name, found)
    for name, hint in shared.items():  # only what is given is handed on
        parser.add_parameter(group, name, _parameter(name, hint, SUPPRESS, of_all))
    return parser


def _parameter(
    name: str, hint: Any, default: Any, described: Docstring, *, by_place: bool = False
) -> _Parameter:
    notes = getattr(hint, "__metadata__", ())
    spelling = next((each for each in notes if isinstance(each, Typed)), Typed())
    check: Check | None = next((each for each in notes if not isinstance(each, Typed)), None)
    kind, several = _type_of(get_args(hint)[0] if notes else hint)
    texts = (each.description for each in described.params if name in each.arg_name.split(", "))
    settings: dict[str, Any] = {"help": _unfinished(next(texts, None))}
    if spelling.metavar is not None:
        settings["metavar"] = spelling.metavar
    needed = default is inspect.Parameter.empty
    if not needed:
        settings["default"] = default
    if by_place and not spelling.names:
        if several or not needed:
            settings["nargs"] = "+" if several else "?"
        return _Parameter([name], kind, several, check, settings | {"type": kind})
    names = list(spelling.names or [f"--{_dashed(name)}"])
    settings |= {"dest": name, "required": needed or spelling.required}
    if kind is bool and not names[0].startswith("--data."):  # as for `fit`: with a value
        return _Parameter(names, kind, False, truth, settings | {"action": "store_true"})
    if several:
        settings |= {"action": "append"} if spelling.repeated else SEVERAL
    return _Parameter(names, kind, several, check, settings | {"type": kind})


def _type_of(hint: Any) -> tuple[Any, bool]:
    """What one value is, None apart, and whether there may be several."""
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = [kind for kind in (get_args(hint) if union else [hint]) if kind is not type(None)]
    for kind in kinds:
        if get_origin(kind) in (Sequence, list):
            return _type_of(get_args(kind)[0])[0], True
    return (str if str in kinds else functools.reduce(or_, kinds)), False  # paths are text


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def _unfinished(text: str | None) -> str:
    """A sentence without its full stop, as help has it."""
    plain = _unquoted(text or "")
    return plain if plain.endswith("...") else plain.removesuffix(".")


def _unquoted(text: str) -> str:
    return " ".join(text.replace("``", "").split())
