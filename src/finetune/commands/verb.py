"""A public function as a verb: its signature gives the options, its docstring their help.

What has no default is given by its place, all else by an option of its name, as jsonargparse reads
it; :class:`Typed` says what is spelled otherwise, a check of :mod:`finetune.spec.schema` beside the
type which values are taken. So command and function take the same, and refuse it in the same words.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from docstring_parser import Docstring, parse
from jsonargparse import ArgumentParser

from finetune.commands.guest import Where, as_guest
from finetune.commands.parsing import Help, explain, plain_value, take
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
        flag: without a value.
        repeated: several values are the option several times.
    """

    names: tuple[str, ...] = ()
    metavar: str | None = None
    required: bool = False
    flag: bool = False
    repeated: bool = False


FLAG = Typed(flag=True)
UNIONS = (Union, types.UnionType)
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


@dataclass(slots=True)
class _Parameter:
    """One of a function, as a parser takes it."""

    names: list[str]
    check: Check | None
    several: bool
    settings: dict[str, Any] = field(default_factory=dict)


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
        arguments = self._as_here(arguments)
        for argument in arguments:
            name, sign, value = argument.partition("=")
            if name.startswith("--") and name not in self._option_string_actions:
                name = alike.get(_dashed(name), name)
            spelled.append(name + sign + value)
        return self._in_range(vars(self.parse_args(spelled)))

    def _as_here(self, arguments: Sequence[str]) -> Sequence[str]:
        """What ``fit`` takes as an option with a value, as the verb has it."""
        for name, parameter in self.parameters.items():
            if name == "data" and parameter.names == ["data"]:  # by its place
                arguments, root = take(arguments, "--data.root")
                arguments = arguments if root is None else [*arguments, root]
            if parameter.settings.get("action") == "store_true" and len(parameter.names) > 1:
                arguments, value = take(arguments, parameter.names[1])
                if value not in (None, "true", "false"):
                    raise UsageError(
                        f"Expected {parameter.names[1]} to be true or false, found {value!r}."
                    )
                arguments = [*arguments, parameter.names[0]] if value == "true" else arguments
        return arguments

    def checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """The function's arguments, from values by name.

        Raises:
            UsageError: a name or a value that the command does not have.
        """
        values = {}
        for name, value in given.items():
            if name not in self.parameters:
                nearest = difflib.get_close_matches(name, self.parameters, n=1, cutoff=0.5)
                hint = f"did you mean {nearest[0]}?" if nearest else f"see {self.prog} --help."
                raise UsageError(f"Expected a setting of {self.prog}, found {name!r}; {hint}")
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
        checks = {each.names[0]: each.check for each in self.parameters.values() if each.check}
        found = {self.parameters[name].names[0]: value for name, value in values.items()}
        check_settings(found, {name: optional(check) for name, check in checks.items()})
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
    shared = None
    if parameters[[*hints][-1]].kind is inspect.Parameter.VAR_KEYWORD:
        shared = get_args(hints.popitem()[1])[0]
    group = parser if shared is None else parser.add_argument_group(_title(shared))
    for name, hint in hints.items():
        given = parameters[name]
        by_place = given.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        found = _parameter(name, hint, given.default, described, by_place=by_place)
        if for_python and given.default is not inspect.Parameter.empty:
            found.settings.pop("required", None)
            if found.settings.get("action") == "append":  # takes no list as a value
                found.settings |= {"nargs": "+", "action": "extend"}
        of_the_images = found.names[0].startswith("--data.")
        parser.add_parameter(group if of_the_images else parser, name, found)
    if shared is not None:  # only what is given is handed on
        described = parse(shared.__doc__ or "")
        for name, hint in get_type_hints(shared, include_extras=True).items():
            parser.add_parameter(group, name, _parameter(name, hint, SUPPRESS, described))
    return parser


def _title(documented: Any) -> str:
    return _unfinished(parse(documented.__doc__ or "").short_description)


def _parameter(
    name: str, hint: Any, default: Any, described: Docstring, *, by_place: bool = False
) -> _Parameter:
    notes = _notes_of(hint)
    spelling = next((each for each in notes if isinstance(each, Typed)), Typed())
    check: Check | None = next((each for each in notes if not isinstance(each, Typed)), None)
    kind, several = _type_of(hint)
    texts = (each.description for each in described.params if name in each.arg_name.split(", "))
    settings: dict[str, Any] = {"help": _unfinished(next(texts, None))}
    if spelling.metavar is not None:
        settings["metavar"] = spelling.metavar
    needed = default is inspect.Parameter.empty
    if not needed:
        settings["default"] = default
    if by_place and not spelling.names:
        nargs = {} if needed and not several else {"nargs": "+" if several else "?"}
        return _Parameter([name], check, several, settings | {"type": kind} | nargs)
    settings["dest"] = name
    if needed or spelling.required:
        settings["required"] = True
    if default is False or spelling.flag:
        settings["action"], check = "store_true", truth
    else:
        settings |= {"type": kind}
        if several:
            once = spelling.repeated
            settings |= {"action": "append"} if once else {"nargs": "+", "action": "extend"}
    return _Parameter(list(spelling.names or [f"--{_dashed(name)}"]), check, several, settings)


def _notes_of(hint: Any) -> tuple[Any, ...]:
    """What is written beside a type, also where None may stand for it."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[1:]
    within = get_args(hint) if get_origin(hint) in UNIONS else ()
    return tuple(note for kind in within for note in _notes_of(kind))


def _kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union, without None."""
    if get_origin(hint) is Annotated:
        return _kinds_of(get_args(hint)[0])
    if get_origin(hint) in UNIONS:
        return tuple(kind for each in get_args(hint) for kind in _kinds_of(each))
    return () if hint is type(None) else (hint,)


def _type_of(hint: Any) -> tuple[Any, bool]:
    """What one value is, and whether there may be several."""
    kinds = _kinds_of(hint)
    for kind in kinds:
        if get_origin(kind) is not None and get_origin(kind) in (Sequence, list, tuple):
            return _type_of(get_args(kind)[0])[0], True
    if set(kinds) == set(get_args(Where)):
        return str, False
    return Union[kinds], False  # noqa: UP007


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def _unfinished(text: str | None) -> str:
    """A sentence without its full stop, as help has it."""
    plain = _unquoted(text or "")
    return plain if plain.endswith("...") else plain.removesuffix(".")


def _unquoted(text: str) -> str:
    return " ".join(text.replace("``", "").split())
