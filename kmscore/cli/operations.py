"""One command for each operation of the API, built from the table of operations when it is called for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from kmscore.cli.engine import place_options, print_json
from kmscore.cli.service import open_service
from kmscore.operations import Kind, Operation, Param

_METAVARS = {
    Kind.INTEGER: "NUMBER",
    Kind.BOOLEAN: "true|false",
    Kind.BLOB: "BASE64",
    Kind.BYTES: "BASE64",
    Kind.BLOBS: "JSON",
    Kind.CONTEXT: "JSON",
    Kind.TAGS: "JSON",
    Kind.STRINGS: "LIST",
    Kind.FILTERS: "JSON",
}
_PARTS = {Kind.NUMBERED: ("",), Kind.NUMBERED_TAGS: (".Key", ".Value"), Kind.NUMBERED_TAG_FILTERS: (".Key", ".Value")}


def operation_command(operation: Operation) -> click.Command:
    """Values go to the operation as they are: what is wrong with one is said by the code that says it on the wire."""
    names: dict[str, str] = {}
    options: list[click.Parameter] = []
    for param in operation.params:
        for name, metavar, hidden in _spellings(param):
            variable = f"p{len(names)}"
            names[variable] = name
            options.append(click.Option([f"--{name}", variable], metavar=metavar, hidden=hidden, help=_help(param)))

    def run(**given: str | None) -> None:
        params = {names[variable]: value for variable, value in given.items() if value is not None}
        print_json(call(operation.name, params))

    epilog = "An extension: not part of the API of Alibaba Cloud KMS." if operation.extension else None
    return click.Command(operation.name, callback=run, params=[*options, *place_options()], help=operation.help, epilog=epilog)


def call(name: str, params: dict[str, str]) -> dict[str, Any]:
    with open_service() as service:
        return service.call(name, params)


def _spellings(param: Param) -> Iterator[tuple[str, str, bool]]:
    """(option, what it takes, hidden); a numbered parameter has one for each number, of which the first is shown."""
    if param.kind in _PARTS:
        for number in range(1, (param.maximum or 1) + 1):
            for part in _PARTS[param.kind]:
                yield f"{param.name}.{number}{part}", "TEXT", number > 1
    else:
        yield param.name, "|".join(param.choices) or _METAVARS.get(param.kind, "TEXT"), param.kind is Kind.UNOFFERED


def _help(param: Param) -> str:
    notes = []
    if param.name == "RegionId":
        notes.append("default: this service's")
    elif param.required:
        notes.append("required")
    elif param.default:
        notes.append(f"default: {param.default}")
    if param.kind is Kind.INTEGER and param.maximum is not None:
        notes.append(f"from {param.minimum} to {param.maximum}")
    return param.help + (f"  [{'; '.join(notes)}]" if notes else "")
