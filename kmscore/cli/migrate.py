"""`kms migrate`: the events of a home into another database."""

from __future__ import annotations

import sys
import time
from urllib.parse import parse_qs, urlsplit

import click

import kmscore
from kmscore.cli.engine import chosen_home, takes_home

SHOWN_SECONDS = 0.2  # between two changes of the line of progress


@click.command()
@click.option("--to", "target", required=True, metavar="postgresql|sqlite|URL", help="Where the events go.")
@takes_home
def migrate(target: str) -> None:
    """Move the events of the home, and all that lies beside them, from its SQLite database into PostgreSQL, or back.

    `--to postgresql` moves them into the database that KMS_DATABASE_URL, or database_url in kms.toml, names; a URL without a password may
    stand here as well. `--to sqlite` moves them from there back into the home. Every row is compared and every hash computed again before
    anything is kept; then the database they came from is marked, and refuses to be opened. End every process of kmscore before. What was
    interrupted is finished by the same command.
    """
    if _has_password(target):
        raise click.UsageError(
            "A password on the command line can be seen by other users: "
            "put the URL into KMS_DATABASE_URL or kms.toml, and say --to postgresql."
        )
    kmscore.protect_process()
    with_line = _Line()
    try:
        moved = kmscore.migrate(chosen_home(), to=target, progress=with_line.show)
    finally:
        with_line.end()
    done = "was there already" if moved.already else f"{moved.rows:,} rows compared, every hash computed again"
    click.echo(f"moved {moved.events:,} events to {moved.where}: {done}")
    if moved.kept:
        click.echo(f"what was there before is kept as {moved.kept}")
    click.echo(f"now: {_what_to_do(target)}")


def _what_to_do(target: str) -> str:
    if target == "sqlite":
        return "unset KMS_DATABASE_URL, take database_url out of kms.toml, and start"
    if target == "postgresql":
        return "start; KMS_DATABASE_URL or kms.toml names it already"
    return f'set KMS_DATABASE_URL, or put database_url = "{target}" into kms.toml, and start'


def _has_password(target: str) -> bool:
    if "://" not in target:
        return False
    try:
        parts = urlsplit(target)
        return parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True)
    except ValueError:
        return True  # at least it cannot be told


class _Line:
    """One line on a terminal that tells how far it is."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._what, self._begun, self._next = "", 0.0, 0.0

    def show(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._begun = what, now
        if not self._shown or (now < self._next and done < total):
            return
        self._next = now + SHOWN_SECONDS
        rate = done / max(now - self._begun, 1e-3)
        click.echo(f"\r\033[K{what} {done:,} of {total:,} events, {rate:,.0f}/s", nl=False, err=True)

    def end(self) -> None:
        if self._shown and self._what:
            click.echo("\r\033[K", nl=False, err=True)
