"""`kms profile`: services under a name of their own, with what it takes to call them, in one TOML file of the user's."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import click

from kmscore.client import parse_endpoint
from kmscore.config import client_settings
from kmscore.disk import require_private, write_file
from kmscore.errors import SetupError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)  # a bare key of TOML
_HEAD = "# Services of the kms command; see kms profile --help. Comments are not kept when it writes.\n"


@dataclass(frozen=True, slots=True)
class Profile:
    """Empty: not set. `ca_file` is absolute, or begins with ~."""

    endpoint: str
    access_key_id: str = ""
    access_key_secret: str = field(default="", repr=False)
    region: str = ""
    ca_file: str = ""


def find_profile(path: Path, name: str) -> Profile:
    """Raises SetupError."""
    profiles = read_profiles(path)
    if name not in profiles:
        known = f"; there are {', '.join(sorted(profiles))}" if profiles else ""
        raise SetupError(f"{path} has no profile {name!r}{known}; kms profile set makes one")
    return profiles[name]


def read_profiles(path: Path) -> dict[str, Profile]:
    """No file: none. Raises SetupError for what it does not understand, and for secrets that other users can read."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # what is not UTF-8, or not TOML, of which the message tells the line
        where = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8 text"
        raise SetupError(f"{path} is not valid TOML: {where}") from None
    profiles = {name: _profile(path, name, table) for name, table in tables.items()}
    if any(profile.access_key_secret for profile in profiles.values()):
        require_private(path)
    return profiles


def _profile(path: Path, name: str, table: Any) -> Profile:
    known = [each.name for each in fields(Profile)]
    if not _NAME.fullmatch(name) or not isinstance(table, dict):
        raise SetupError(f"{path}: {name!r} is not the table of a profile")
    for key, value in table.items():
        if key not in known:
            raise SetupError(f"{path}: unknown setting {key!r} of profile {name}; known are {', '.join(known)}")
        if not isinstance(value, str) or not value.isprintable():
            raise SetupError(f"{path}: {key} of profile {name} is not a string on one line")
    if not table.get("endpoint"):
        raise SetupError(f"{path}: profile {name} has no endpoint")
    profile = Profile(**table)
    if bool(profile.access_key_id) != bool(profile.access_key_secret):
        raise SetupError(f"{path}: access_key_id and access_key_secret of profile {name} go together; one of them is not set")
    return profile


def write_profiles(path: Path, profiles: Mapping[str, Profile]) -> None:
    """Whole or not at all, readable for its owner alone; a link is followed. Raises SetupError."""
    lines = [_HEAD]
    for name, profile in sorted(profiles.items()):
        lines.append(f"\n[{name}]\n")
        # What JSON escapes in printable text, TOML does in the same way.
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in asdict(profile).items() if value]
    place = path.resolve()
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(place, "".join(lines).encode())
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None


# --- commands ----------------------------------------------------------------------------------------------------------------------


@click.group("profile")
def profile() -> None:
    """Name services, and call them with --profile NAME or KMS_PROFILE.

    Profiles lie in $KMS_PROFILES, else $XDG_CONFIG_HOME/kmscore/profiles.toml, else ~/.config/kmscore/profiles.toml.
    """


@profile.command("set")
@click.argument("name")
@click.option("--endpoint", required=True, metavar="URL", help="Where it listens: https://HOST:PORT.")
@click.option("--access-key-id", default="", metavar="ID", help="Call it with this access key; its secret is asked for.")
@click.option("--ca-file", default="", metavar="FILE", help="Trust these certificates (PEM), not the system's.")
@click.option("--region", default="", help="RegionId where an operation wants one.  [default: cn-local]")
def set_profile(name: str, endpoint: str, access_key_id: str, ca_file: str, region: str) -> None:
    """Make the profile NAME, or replace it.

    The secret is asked for without echo, or is the first line of standard input where that is no terminal. Without an access key, that of
    KMS_ACCESS_KEY_ID and KMS_ACCESS_KEY_SECRET is used, or of the home.
    """
    if not _NAME.fullmatch(name):
        raise click.BadParameter("It is 1 to 64 letters, digits, '_' and '-'.", param_hint="'NAME'")
    parse_endpoint(endpoint)
    if ca_file and not Path(ca_file).is_file():
        raise SetupError(f"there is no file {ca_file}")
    path = client_settings().profiles
    profiles = read_profiles(path)
    values = {
        "endpoint": endpoint,
        "access_key_id": access_key_id,
        "access_key_secret": _ask_secret() if access_key_id else "",
        "region": region,
        "ca_file": str(Path(ca_file).absolute()) if ca_file else "",
    }
    write_profiles(path, {**profiles, name: _profile(path, name, values)})


def _ask_secret() -> str:
    if sys.stdin.isatty():
        secret: str = click.prompt("access key secret", hide_input=True, err=True)
    else:
        secret = sys.stdin.readline()
    if not secret.strip():
        raise SetupError("no secret was given")
    return secret.strip()


@profile.command("list")
def list_profiles() -> None:
    """Every profile, one a line: its name, where it is, the id of its access key."""
    profiles = read_profiles(client_settings().profiles)
    width = max(map(len, profiles), default=0)
    for name, each in sorted(profiles.items()):
        more = [f"{key}={value}" for key in ("access_key_id", "region", "ca_file") if (value := getattr(each, key))]
        click.echo("  ".join([name.ljust(width), each.endpoint, *more]))


@profile.command("delete")
@click.argument("name")
def delete_profile(name: str) -> None:
    """Forget the profile NAME, and its secret."""
    path = client_settings().profiles
    find_profile(path, name)
    write_profiles(path, {other: kept for other, kept in read_profiles(path).items() if other != name})
