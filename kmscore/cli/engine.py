"""What the commands share: the options that say where to work, an open engine on a home, and the ways to print."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import kmscore
from kmscore.config import client_settings, home_directory

if TYPE_CHECKING:
    from kmscore.engine.kms import Kms

Command = TypeVar("Command", bound=Callable[..., Any])

_CONTROLS = re.compile(r"[\x7f-\x9f]")  # which JSON lets stand, and a terminal may obey

_PLACE = {
    "home": ("DIR", "Where everything lives.  [default: $KMS_HOME, else ./var]"),
    "endpoint": ("URL", "Call the service there, not an engine on the home.  [default: $KMS_ENDPOINT]"),
    "profile": ("NAME", "Call the service of this profile (kms profile).  [default: $KMS_PROFILE]"),
    "ca-file": ("FILE", "Trust these certificates (PEM) of a service, not the system's.  [default: $KMS_CA_FILE]"),
}
_REMOTE = tuple(name for name in _PLACE if name != "home")


def place_options(*, remote: bool = True) -> list[click.Parameter]:
    """--home, --endpoint, --profile, --ca-file, which may stand before the command or after it.

    Not `remote`: for a command that works on a home only; it knows the others to refuse them, see `chosen_home`.
    """
    return [_place_option(name, hidden=not remote and name in _REMOTE) for name in _PLACE]


def _place_option(name: str, *, hidden: bool) -> click.Option:
    def keep(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.meta[_key(name)] = value

    metavar, text = _PLACE[name]
    return click.Option([f"--{name}"], metavar=metavar, expose_value=False, callback=keep, hidden=hidden, help=text)


def _key(name: str) -> str:
    return f"{__name__}.{name}"  # in the context's meta, which every sub-command shares


def takes_home(command: Command) -> Command:
    return _with(command, place_options(remote=False))


def takes_service(command: Command) -> Command:
    return _with(command, place_options())


def _with(command: Command, options: list[click.Parameter]) -> Command:
    params: list[click.Parameter] = command.__dict__.setdefault("__click_params__", [])
    params.extend(reversed(options))  # click turns the list round
    return command


def chosen(name: str) -> str | None:
    """What the command line says of home, endpoint, profile or ca-file."""
    value: str | None = click.get_current_context().meta.get(_key(name))
    return value


def chosen_home() -> str | None:
    """Raises UsageError when the command line names a service: what asks for the home itself cannot be done there."""
    named = [f"--{name}" for name in _REMOTE if chosen(name) is not None]
    if named:
        command = click.get_current_context().command_path
        raise click.UsageError(f"{command} works on a home, not through a service: leave out {' and '.join(named)}.")
    return chosen("home")


def _require_meant(home: Path) -> None:
    """Raises UsageError where the environment names a service, and nothing names the home that would be made here."""
    environment = client_settings()
    if chosen("home") is None and not environment.names_home and (environment.endpoint or environment.profile) and not home.exists():
        command = click.get_current_context().command_path
        raise click.UsageError(
            f"{command} works on a home, and KMS_ENDPOINT or KMS_PROFILE names a service: run it where the service runs, with --home DIR."
        )


def home_path() -> Path:
    return home_directory(chosen_home())


def own_command(home: Path) -> str:
    """How a shell calls this program on `home`."""
    return shell_command("--home", str(home))


def shell_command(*arguments: str) -> str:
    program = sys.argv[0] if Path(sys.argv[0]).name == "kms" else "kms"
    return shlex.join([program, *arguments])


@contextmanager
def open_engine(*, ticker: bool = False, **settings: Any) -> Iterator[Kms]:
    """The engine on the chosen home; a home that does not exist is made, and the user is told.

    Without a ticker a command does what it was asked to do and nothing else.
    """
    home = home_path()
    _require_meant(home)
    kmscore.protect_process()
    is_new = not home.exists()
    with kmscore.open_kms(home, ticker=ticker, **settings) as kms:
        if is_new:
            click.echo(f"made a new home at {home}", err=True)
        yield kms


def print_json(answer: dict[str, Any]) -> None:
    """UTF-8, whatever the locale says."""
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    click.echo(_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode(errors="backslashreplace"))
