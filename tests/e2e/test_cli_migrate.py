"""`kms migrate` as a user types it: where the URL comes from, what it prints, and that no password is ever shown."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("psycopg")
from command import Command
from local_servers import Postgres

pytestmark = pytest.mark.sqlite


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("server") / "postgres", durable=False) as server:
        yield server


def test_there_and_back_by_the_command_line(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.create_database("kms")
    kms = Command(tmp_path / "home", {"KMS_PKCS11_MODULE": "none"})
    kms.run("CreateKey", "--Description", "moved")
    keys = kms.json("ListKeys")
    bare = url.replace(f":{postgres.password}@", "@")

    done = kms.run("migrate", "--to", url)
    assert done.returncode == 2
    assert postgres.password not in done.stderr.decode()
    assert "no PostgreSQL is named" in kms.refused("migrate", "--to", "postgresql")

    password = Command(kms.home, {**kms.settings, "PGPASSWORD": postgres.password})
    told = password.text("migrate", "--to", bare)
    assert f" events to {bare}, schema public: " in told.splitlines()[0]
    assert f'database_url = "{bare}"' in told

    (kms.home / "kms.toml").write_text(f'database_url = "{url}"\n')
    assert kms.json("ListKeys") == keys
    assert "was there already" in kms.text("migrate", "--to", "postgresql")
    shown = on_a_terminal(kms, "migrate", "--to", "sqlite")
    assert "copied" in shown and "kept as kms.db.before-" in shown, shown
    assert "take database_url out" in shown
    refused = kms.refused("ListKeys")
    assert "were moved to" in refused
    (kms.home / "kms.toml").unlink()
    assert kms.json("ListKeys") == keys
    for text in (told, shown, refused):
        assert postgres.password not in text


def on_a_terminal(kms: Command, *arguments: str) -> str:
    ours, theirs = pty.openpty()
    process = kms.start(*arguments, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:  # it has ended
            break
    os.close(ours)
    assert process.wait() == 0, said
    return said.decode()
