"""Where a command works: on the service that is asked for, or else on an engine of its own. Decided here, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import kmscore
from kmscore.cli.engine import chosen, open_engine, own_command, shell_command
from kmscore.config import CREDENTIALS, ClientSettings, Settings, client_settings, home_directory, read_credentials
from kmscore.disk import require_private
from kmscore.errors import SetupError
from kmscore.operations import OPERATIONS, invoke

if TYPE_CHECKING:
    from kmscore.cli.profiles import Profile
    from kmscore.files import Engine

Call = Callable[[str, dict[str, str]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Service:
    """`call` takes an operation and its parameters as strings, and answers the wire's JSON. `data_keys`: what kmscore/files.py needs."""

    call: Call
    data_keys: Engine
    shell: str
    """How a shell calls this program on the same service."""
    settings: Settings | None
    """Of the engine; None: the service is elsewhere."""


@contextmanager
def open_service() -> Iterator[Service]:
    """Raises KmsError when the place cannot be used; a service elsewhere is not called yet."""
    place = chosen_place()
    if place is None:
        with open_engine() as kms:
            call = _with_region(lambda name, params: invoke(kms, name, params), kms.settings.region)
            yield Service(call, kms, own_command(kms.settings.home), kms.settings)
        return
    from kmscore.client import Client, RemoteKms  # late: an engine needs no network

    kmscore.protect_process()
    client = Client(place.endpoint, place.access_key_id, place.access_key_secret, place.region, place.ca_file)
    if not client.endpoint.is_private:
        click.echo(
            f"warning: {client.endpoint} is not encrypted: whoever is on the way reads plaintexts and data keys; use https", err=True
        )
    yield Service(_with_region(client.call, client.region), RemoteKms(client), place.shell, None)


def _with_region(call: Call, region: str) -> Call:
    def with_region(name: str, params: dict[str, str]) -> dict[str, Any]:
        if OPERATIONS[name].takes_region:
            params = {"RegionId": region, **params}
        return call(name, params)

    return with_region


@dataclass(frozen=True, slots=True)
class Place:
    """A service elsewhere, and as whom to call it."""

    endpoint: str
    access_key_id: str
    access_key_secret: str = field(repr=False)
    region: str
    ca_file: str
    shell: str


def chosen_place() -> Place | None:
    """None: an engine on the home. The command line wins, with the profile that it names; then the environment, with its profile."""
    environment = client_settings()
    named, given, trusted = chosen("profile"), chosen("endpoint"), chosen("ca-file")
    name = environment.profile if named is None else named
    profile = None
    if name or named is not None:
        from kmscore.cli.profiles import find_profile

        profile = find_profile(environment.profiles, name)
    of_profile = profile.endpoint if profile else ""
    endpoint = (of_profile if named is not None else environment.endpoint or of_profile) if given is None else given
    if not endpoint and given is None:
        if trusted is not None:
            raise click.UsageError("--ca-file goes with --endpoint or --profile.")
        return None
    if trusted is not None and not endpoint.lower().startswith("https:"):
        raise click.UsageError("--ca-file goes with an https endpoint.")
    ca_file = trusted if trusted is not None else (profile.ca_file if profile else "") or environment.ca_file
    options = {
        "--home": str(Path(home).absolute()) if (home := chosen("home")) else "",
        "--profile": name,
        "--endpoint": endpoint if endpoint != of_profile else "",
        "--ca-file": str(Path(ca_file).absolute()) if ca_file and not (profile and ca_file == profile.ca_file) else "",
    }
    shell = shell_command(*(word for option, value in options.items() if value for word in (option, value)))
    access_key = _access_key(environment, profile, first=named is not None)
    return Place(endpoint, *access_key, profile.region if profile else "", str(Path(ca_file).expanduser()) if ca_file else "", shell)


def _access_key(environment: ClientSettings, profile: Profile | None, *, first: bool) -> tuple[str, str]:
    """`first`: the command line names the profile, whose access key then wins over the environment's."""
    if first and profile is not None and profile.access_key_id:
        return profile.access_key_id, profile.access_key_secret
    if bool(environment.access_key_id) != bool(environment.access_key_secret):
        raise SetupError("KMS_ACCESS_KEY_ID and KMS_ACCESS_KEY_SECRET go together; one of them is not set")
    for each in (environment, profile):
        if each is not None and each.access_key_id:
            return each.access_key_id, each.access_key_secret
    path = home_directory(chosen("home")) / CREDENTIALS
    if not path.exists():
        raise SetupError(
            "no access key: set KMS_ACCESS_KEY_ID and KMS_ACCESS_KEY_SECRET, put one into a profile (kms profile set), "
            f"or name the home of the service; there is no {path}"
        )
    require_private(path)
    return read_credentials(path)
