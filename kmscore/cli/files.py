"""`kms encrypt-file` and `kms decrypt-file`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from kmscore import files
from kmscore.cli.engine import takes_service
from kmscore.cli.service import open_service
from kmscore.errors import KmsError

STANDARD = "-"


@click.command("encrypt-file")
@click.option("--key", required=True, metavar="KEY", help="Id, ARN or alias/NAME of the key.")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@takes_service
def encrypt_file(key: str, source: str, target: str) -> None:
    """Encrypt the file IN (- for standard input) into OUT, under a new data key of KEY.

    OUT appears only when it is whole, readable for its owner alone. The format is docs/FILE-FORMAT.md.
    """
    with _stoppable(), _opened(source, "encrypting") as (plain, progress), open_service() as service:
        files.encrypt_file(service.data_keys, key, plain, _target(target), progress)


@click.command("decrypt-file")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@takes_service
def decrypt_file(source: str, target: str) -> None:
    """Decrypt the file IN (- for standard input) into OUT.

    OUT appears only when all of IN has been found genuine, readable for its owner alone.
    """
    with _stoppable(), _opened(source, "decrypting") as (sealed, progress), open_service() as service:
        files.decrypt_file(service.data_keys, sealed, _target(target), progress)


def _target(name: str) -> Path:
    if name == STANDARD:
        raise KmsError("InvalidParameter", "OUT cannot be standard output: what is cut short could not be taken back; name a file")
    return Path(name)


@contextmanager
def _opened(source: str, what: str) -> Iterator[tuple[Path | BinaryIO, Callable[[int], object] | None]]:
    """The input, and what to tell progress to: a bar on standard error where that is a terminal and the size is known."""
    if source == STANDARD:
        yield sys.stdin.buffer, None
        return
    path = Path(source)
    if not sys.stderr.isatty() or not path.is_file():
        yield path, None
        return
    with click.progressbar(length=os.path.getsize(path), label=what, file=sys.stderr) as bar:
        yield path, bar.update
        bar.finish()  # what is not content (a header, tags) was not counted
        bar.render_progress()


@contextmanager
def _stoppable() -> Iterator[None]:
    """End on SIGTERM and SIGHUP as on Ctrl-C: clean up first."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
