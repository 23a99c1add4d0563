"""`kms user`, `kms access-key`, `kms policy`: who may call the service, and what they may do. On the home only."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

import click

from kmscore.cli.engine import open_engine, print_json, takes_home
from kmscore.domain.policy import glob
from kmscore.errors import SetupError
from kmscore.operations import OPERATIONS
from kmscore.operations.render import date

STANDARD = "-"


@click.group()
def user() -> None:
    """Users of the service: each has one policy, and at most two access keys."""


@user.command("create", short_help="Make a user.")
@click.argument("name")
@click.option("--policy", metavar="FILE", help="What the user may do, as JSON; - for standard input. Without it: nothing.")
@takes_home
def create_user(name: str, policy: str | None) -> None:
    """Make the user NAME."""
    text = "" if policy is None else _text(policy)
    with open_engine() as kms:
        kms.create_user(name, policy=text)
    _warn(text)
    click.echo(f"made user {name}; an access key comes from: kms access-key create {name}")


@user.command("list")
@takes_home
def list_users() -> None:
    """Every user, and whether it has a policy."""
    with open_engine() as kms:
        for item in kms.list_users():
            click.echo(f"{item.user_name}  {item.arn}  {'has a policy' if item.policy else 'may do nothing'}")


@user.command("show")
@click.argument("name")
@takes_home
def show_user(name: str) -> None:
    """The policy of the user NAME, as it was given."""
    with open_engine() as kms:
        click.echo(kms.get_user_policy(name))


@user.command("set-policy", short_help="Say what a user may do.")
@click.argument("name")
@click.argument("file")
@takes_home
def set_user_policy(name: str, file: str) -> None:
    """Let the user NAME do what FILE (JSON; - for standard input) says, from when the command returns. An empty file: nothing."""
    text = _text(file)
    with open_engine() as kms:
        kms.set_user_policy(name, policy=text)
    _warn(text)


@user.command("delete")
@click.argument("name")
@takes_home
def delete_user(name: str) -> None:
    """Delete the user NAME with its access keys."""
    with open_engine() as kms:
        kms.delete_user(name)


@click.group("access-key")
def access_key() -> None:
    """Access keys: what users sign their requests with."""


@access_key.command("create", short_help="Make an access key; its secret is shown once.")
@click.argument("user_name", metavar="USER")
@takes_home
def create_access_key(user_name: str) -> None:
    """Make an access key of USER. The secret is printed here and never again."""
    with open_engine() as kms:
        made = kms.create_access_key(user_name)
    print_json({"AccessKeyId": made.access_key_id, "AccessKeySecret": made.access_key_secret, "UserName": made.user_name})


@access_key.command("list", short_help="Every access key, and when it was last used.")
@click.argument("user_name", metavar="[USER]", required=False)
@takes_home
def list_access_keys(user_name: str | None) -> None:
    """Access keys of USER or of everyone: id, user, status, when it was made and last used (to a minute)."""
    with open_engine() as kms:
        for item in kms.list_access_keys(user_name):
            used = _since(item.last_used_date)
            click.echo(f"{item.access_key_id}  {item.user_name}  {item.status}  made {date(item.create_date)}  {used}")


@access_key.command("disable", short_help="Refuse what an access key signs.")
@click.argument("access_key_id", metavar="ID")
@takes_home
def disable_access_key(access_key_id: str) -> None:
    """Refuse whatever ID signs, in every process, from when the command returns."""
    with open_engine() as kms:
        kms.disable_access_key(access_key_id)


@access_key.command("enable")
@click.argument("access_key_id", metavar="ID")
@takes_home
def enable_access_key(access_key_id: str) -> None:
    """Take what ID signs again."""
    with open_engine() as kms:
        kms.enable_access_key(access_key_id)


@access_key.command("delete")
@click.argument("access_key_id", metavar="ID")
@takes_home
def delete_access_key(access_key_id: str) -> None:
    """Delete ID and its secret."""
    with open_engine() as kms:
        kms.delete_access_key(access_key_id)


@click.group()
def policy() -> None:
    """Policies: what would be allowed."""


@policy.command("simulate")
@click.option("--action", required=True, metavar="ACTION", help="kms: and the name of an operation, such as kms:Encrypt.")
@click.option("--key", required=True, metavar="KEY", help="Id, ARN or alias/NAME of the key.")
@click.option("--user", "user_name", metavar="NAME", help="Of this user only; by default of everyone.")
@click.option("--policy", "file", metavar="FILE", help="As if the key had this policy (- for standard input).")
@takes_home
def simulate(action: str, key: str, user_name: str | None, file: str | None) -> None:
    """Who could do ACTION with KEY, and why."""
    if action not in _ACTIONS:
        raise click.UsageError(f"there is no action {action}{_near(action)}")
    text = None if file is None else _text(file)
    with open_engine() as kms:
        judged = kms.simulate_policy(key, action=action, policy=text, user_name=user_name)
    for item in judged:
        unable = "" if item.able else "; has no enabled access key"
        click.echo(f"{'allow' if item.allowed else 'deny ':<5}  {item.arn}  {item.why}{unable}")


_ACTIONS = sorted({operation.action for operation in OPERATIONS.values()})


def _warn(text: str) -> None:
    """Of actions that no operation has: an Allow of one allows nothing, and, worse, a Deny forbids nothing."""
    for number, statement in enumerate(json.loads(text)["Statement"] if text else (), 1):
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            if not any(glob(action.lower(), known.lower()) for known in _ACTIONS):
                click.echo(f"warning: statement {number}: there is no action {action}{_near(action)}", err=True)


def _near(action: str) -> str:
    near = get_close_matches(action, _ACTIONS, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _text(file: str) -> str:
    try:
        if file == STANDARD:
            return sys.stdin.buffer.read().decode().strip()
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SetupError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{file} is not UTF-8 text") from None


def _since(used: datetime | None) -> str:
    return "never used" if used is None else f"used {date(used)}"
