"""What both programs' command lines have in common: `--version`, `--json`, completion, a store named either way."""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

OTHER = "store_too"
"""What the parameter is called that takes a store in the other way."""


def make_program(about: str) -> typer.Typer:
    """A command line with `--version` and completion; `about` is what its `--help` begins with."""
    program = typer.Typer(help=about, no_args_is_help=True, pretty_exceptions_enable=False)

    @program.callback(help=about)
    def options(
        version: Annotated[
            bool, typer.Option("--version", help="Say the version and end.", is_eager=True, callback=_say_version)
        ] = False,
    ) -> None: ...

    return program


def _say_version(asked: bool) -> None:
    if asked:
        from recon import __version__

        typer.echo(__version__)
        raise typer.Exit


def name_stores_either_way(program: typer.Typer) -> None:
    """Let every command registered so far take its `store` as an option or in its place among the arguments.

    As an argument it comes first, and `--store` may stand for it; as an option it may come as the last argument,
    unless the command takes any number of those. Which of the two `--help` shows as the usual one does not change.
    """
    for command in program.registered_commands:
        if command.callback is not None:
            command.callback = _either_way(command.callback)


def _either_way(command: Callable[..., Any]) -> Callable[..., Any]:
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    if "store" not in parameters:
        return command
    places = [name for name, parameter in parameters.items() if _is_argument(parameter)]
    if any(typing.get_origin(typing.get_args(parameters[name].annotation)[0]) is list for name in places):
        return command
    needed = [name for name in ("store", *places) if parameters[name].default is inspect.Parameter.empty]
    for name in {"store", *places}:
        kind, told = typing.get_args(parameters[name].annotation)
        told = copy.copy(told)
        told.metavar = told.metavar or (name.upper() if name in places else None)
        parameters[name] = parameters[name].replace(annotation=Annotated[kind | None, told], default=None)
    if "store" in places:
        other: Any = typer.Option("--store", "-s", help="The same, as other commands take it.")
    else:
        other = typer.Argument(metavar="STORE", help="The same as --store.")
    kind = typing.get_args(parameters["store"].annotation)[0]
    also = inspect.Parameter(OTHER, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, other])

    @functools.wraps(command)
    def either(**given: Any) -> Any:
        named = given.pop(OTHER)
        if named is not None and "store" in places:  # then what stands among the arguments is one further on
            values = [named, *(given[name] for name in places)]
            if values.pop() is not None:
                raise typer.BadParameter(f"--store {named}: the arguments name another; give one")
            given |= dict(zip(places, values, strict=True))
        elif named is not None:
            if given["store"] is not None:
                raise typer.BadParameter(f"the store is --store {given['store']} and {named}; give one")
            given["store"] = named
        for name in needed:
            if given[name] is None:
                what = "--store (or its path among the arguments)" if name == "store" else name.upper()
                raise typer.BadParameter(f"missing {what}")
        return command(**given)

    by_name = [parameter.replace(kind=also.kind) for parameter in parameters.values()]  # defaults in any order
    signature = inspect.Signature([*by_name, also])
    either.__signature__ = signature  # type: ignore[attr-defined]
    either.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    del either.__wrapped__  # typer would read the annotations of that
    return either


def _is_argument(parameter: inspect.Parameter) -> bool:
    told = typing.get_args(parameter.annotation)[1:]
    return any(isinstance(each, type(typer.Argument())) for each in told)
