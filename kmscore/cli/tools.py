"""`kms rotate`, `tick`, `reconcile`, `doctor`, `history`: what a person does beside the operations of the API."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

import kmscore
from kmscore.cli.engine import chosen_home, home_path, open_engine, print_json, takes_home, takes_service
from kmscore.cli.operations import call
from kmscore.errors import key_not_found

# Field of ReconcileReport -> what it says of each of its items.
_SETTLED = {
    "abandoned": "interrupted attempt given up, its object destroyed",
    "finished": "interrupted destruction finished",
    "removed": "destroyed material was found again and removed",
    "quarantined": "object that no event explains: left alone",
    "missing": "MATERIAL IS MISSING from its custody",
    "pending": "could not be settled now; try again",
}


@click.command()
@click.argument("key")
@takes_service
def rotate(key: str) -> None:
    """Rotate KEY (id, ARN or alias/NAME) now: a new version encrypts, older ones still decrypt."""
    print_json(call("RotateKey", {"KeyId": key}))


@click.command()
@click.option("--parked", is_flag=True, help="Try again what was given up (kms doctor names it): after its cause was seen to.")
@takes_home
def tick(parked: bool) -> int:
    """Rotate and destroy whatever is due now, and imported material whose time is over. A running service does it by itself."""
    with open_engine() as kms:
        if parked:
            click.echo(f"{kms.release_parked()} taken up again")
        report = kms.run_due()
    for key_id in report.rotated:
        click.echo(f"rotated {key_id}")
    for key_id in report.destroyed:
        click.echo(f"destroyed {key_id}")
    for key_id in report.expired:
        click.echo(f"expired {key_id}")
    for key_id, code in report.failed:
        click.echo(f"{code}: {key_id} must wait", err=True)
    if not (report.rotated or report.destroyed or report.expired or report.failed):
        click.echo("nothing is due")
    return 1 if report.failed else 0


@click.command()
@takes_home
def workers() -> int:
    """The scheduler's processes as they last said they are there, the last sweep, and what is due. Exit 1 when redis_url is set and none
    is alive."""
    with open_engine() as kms:
        status, seen, meant = kms.due_status(), kms.scheduler_workers(), bool(kms.settings.redis_url)
    rows: list[tuple[str, ...]] = [("HOST", "PID", "SINCE", "LAST SEEN", "LAST WORK", "DONE", "FAILED", "")]
    for worker in seen:
        times = ("never" if at is None else _plain(at) for at in (worker.started_at, worker.seen_at, worker.worked_at))
        state = "alive" if worker.alive else "silent"
        rows.append((_plain(worker.host), str(worker.pid), *times, str(worker.done), str(worker.failed), state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if seen else ():
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    swept = status.last_sweep_seconds_ago
    click.echo(f"{status.workers_alive} workers alive; " + ("never swept" if swept is None else f"last sweep {swept:.0f} s ago"))
    click.echo(f"{status.backlog} due, the oldest for {status.oldest_due_seconds:.0f} s; {status.parked} parked")
    return 1 if meant and not status.workers_alive else 0


@click.command()
@takes_home
def reconcile() -> int:
    """Settle interrupted work, and compare every object of token and store with the events. Exit 1 when material is missing."""
    with open_engine() as kms:
        report = kms.reconcile()
    rows = [f"{item}: {text}" for name, text in _SETTLED.items() for item in getattr(report, name)]
    if report.swept:
        rows.append(f"{report.swept} nameless remains of killed calls swept")
    for row in rows or ["token, store and events agree"]:
        click.echo(row)
    return 1 if report.missing else 0


@click.command()
@takes_home
def doctor() -> int:
    """Examine the home: module, token, files, store, process. Exit 1 when something is wrong."""
    home = home_path()
    if not home.exists():
        click.echo(f"warn  there is no home at {home} yet\n      -> kms serve, or the first command, makes it; --home names another")
        return 1
    findings = kmscore.doctor(chosen_home())
    for finding in findings:
        click.echo(f"{finding.level:<4}  {finding.what}")
        if finding.do:
            click.echo(f"      -> {finding.do}")
    wrong = [sum(finding.level == level for finding in findings) for level in ("fail", "warn")]
    click.echo(f"\n{len(findings)} examined, {wrong[0]} wrong, {wrong[1]} to look at")
    return 1 if wrong[0] else 0


@click.command()
@click.argument("key")
@takes_home
def history(key: str) -> None:
    """Every event of KEY (id or ARN), oldest first, with who asked and the RequestId; also of a key that is destroyed."""
    with open_engine() as kms:
        events = kms.history(key)
    if not events:
        raise key_not_found()
    for event in events:
        facts = "  ".join(f"{name}={_plain(value)}" for name, value in event["facts"].items() if value not in ("", {}))
        asked = f"by={_plain(event['actor'])}  request={_plain(event['request_id'])}"
        click.echo(f"{_plain(event['time'])}  {event['event']:<25}  {facts}{'  ' if facts else ''}{asked}")


def _plain(value: object) -> str:
    """One word or a piece of JSON, on one line."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
