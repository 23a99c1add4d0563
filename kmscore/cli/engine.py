"""What the commands share: the home they work on, an open engine, and the ways to print."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import kmscore
from kmscore.config import load_settings

if TYPE_CHECKING:
    from kmscore.engine.kms import Kms

Command = TypeVar("Command", bound=Callable[..., Any])

HOME = f"{__name__}.home"  # in the context's meta, which every sub-command shares


def home_option() -> click.Option:
    """--home, which may stand before the command or after it."""

    def keep(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.meta[HOME] = value

    return click.Option(
        ["--home"], metavar="DIR", expose_value=False, callback=keep, help="Where everything lives.  [default: $KMS_HOME, else ./var]"
    )


def takes_home(command: Command) -> Command:
    params: list[click.Parameter] = command.__dict__.setdefault("__click_params__", [])
    params.append(home_option())
    return command


def chosen_home() -> str | None:
    value: str | None = click.get_current_context().meta.get(HOME)
    return value


def home_path() -> Path:
    return load_settings(chosen_home()).home


def own_command(home: Path) -> str:
    """How a shell calls this program on `home`."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "kms" else "kms"
    return shlex.join([program, "--home", str(home)])


@contextmanager
def open_engine(*, ticker: bool = False, **settings: Any) -> Iterator[Kms]:
    """The engine on the chosen home; a home that does not exist is made, and the user is told.

    Without a ticker a command does what it was asked to do and nothing else.
    """
    kmscore.protect_process()
    home = home_path()
    is_new = not home.exists()
    with kmscore.open_kms(home, ticker=ticker, **settings) as kms:
        if is_new:
            click.echo(f"made a new home at {home}", err=True)
        yield kms


def print_json(answer: dict[str, Any]) -> None:
    """UTF-8, whatever the locale says."""
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False).encode())
