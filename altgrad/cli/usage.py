"""Help and mistakes on the command line.

Usage is `altgrad runs rm [OPTIONS] RUN...`, as man pages have it; Typer's own is `{RUN...}...`, with types of Python.
Mistakes are one line of ours: `--jobs is 'x'; it takes a whole number, 1 or more.`

Typer converts what is typed and tells of a failure in several lines, with the sentence of whatever library converts in
its version (click, pydantic). Only the place and the value are taken from it here; what the parameter takes is read
from the command's own annotation.
"""

import functools
import typing
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from altgrad.cli import console

LONGEST = 60
Function = TypeVar("Function", bound=Callable[..., Any])
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # click's, or Typer's own copy of it


class Program(typer.Typer):
    """A Typer program whose commands write their arguments as man pages do."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"cls": _Group, **more})

    def command(self, name: str | None = None, **more: Any) -> Callable[[Function], Function]:
        """As Typer's."""
        return super().command(name, cls=_Command, **more)


def _quick(parameters: list[Any]) -> list[Any]:
    """The same, whose flags cost nothing where they are not typed, `--help` and `--install-completion` among them.

    Typer makes a pydantic type for each, to read the None that is there; pydantic takes half of a quick command's time.
    """
    for each in parameters:
        if getattr(each, "is_flag", False) and each.default in (None, False):
            each.process_value = functools.partial(_flag, type(each).process_value, each)
    return parameters


def _flag(process: Callable[..., Any], parameter: Any, ctx: Any, value: Any) -> Any:
    return process(parameter, ctx, False if value is None else value)


class _Command(TyperCommand):
    """A command: `RUN` is needed, `[RUN]` may be left out, dots follow what may be several."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As Typer's."""
        return _quick(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As Typer's."""
        return [self.options_metavar or "", *(_usage(each) for each in self._of("argument", ctx))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """As Typer's."""
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            records = [(each, each.get_help_record(ctx)) for each in self._of(kind, ctx)]
            rows = [(_usage(each) if kind == "argument" else found[0], found[1]) for each, found in records if found]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _of(self, kind: str, ctx: Any) -> list[Any]:
        return [each for each in self.get_params(ctx) if each.param_type_name == kind]


def _usage(argument: Any) -> str:
    """`RUN`, `[RUN]`, `RUN...`, `[RUN]...`."""
    name = str(argument.metavar or argument.name).upper()
    several = "..." if argument.nargs != 1 else ""
    return f"{name if argument.required else f'[{name}]'}{several}"


class _Group(TyperGroup):
    """A group of commands within another."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As Typer's."""
        return _quick(super().get_params(ctx))


class Commands(_Group):
    """A group of commands whose usage errors are one line and exit code 2."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """As Typer's."""
        try:
            return super().make_context(*args, **more)
        except _UsageError as error:
            _refuse(error)

    def invoke(self, ctx: Any) -> Any:
        """As Typer's."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            _refuse(error)


def _refuse(error: Any) -> NoReturn:
    """Say it and leave; the help that a group without a command shows stays Typer's."""
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    context, parameter = error.ctx, getattr(error, "param", None)
    command = context.command_path if context is not None else "altgrad"
    if parameter is not None and type(error).__name__ != "MissingParameter":
        is_option = parameter.param_type_name == "option"
        name = max(parameter.opts, key=len) if is_option else parameter.metavar or parameter.name.upper()
        taken = _takes(context.command.callback, parameter.name)
        value = _value(error)
        if value is None:  # nothing was converted: what is wrong is not its type, but say that a file may not be read
            said = str(getattr(error, "message", "")).rstrip(".")
            console.fail(f"{name}: {said[:200]}." if said else f"{name} takes {taken}.", 2)
        console.fail(f"{name} is {_short(value)}; it takes {taken}.", 2)
    said = error.format_message().rstrip(".")
    console.fail(f"{said[:200]}; see {command} -h.", 2)


def _value(error: BaseException) -> Any:
    """What was typed, where whatever converted it has kept it."""
    cause: Any = error.__cause__
    found = cause.errors(include_url=False) if hasattr(cause, "errors") else []
    return found[0].get("input") if found else None


def _short(value: Any) -> str:
    text = ascii(value) if not str(value).isprintable() else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _takes(command: Any, name: str) -> str:
    """What a command's parameter takes, in words."""
    from pydantic import Field

    from altgrad.spec.annotations import words

    hint = typing.get_type_hints(command, include_extras=True)[name]
    bare, *notes = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    limits = next((Field(ge=note.min, le=note.max) for note in notes if hasattr(note, "min")), None)
    if typing.get_origin(bare) is list or (items := [each for each in typing.get_args(bare) if _is_list(each)]):
        bare = typing.get_args(bare if typing.get_origin(bare) is list else items[0])[0]
    return words(bare if limits is None else typing.Annotated[bare, limits]).removesuffix(", or null")


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is list
