"""Two nodes of `kms serve` on one PostgreSQL: a disable is global when it is acknowledged, whatever happens to nodes and links."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from command import ROOT
from local_servers import Postgres
from store_audit import assert_nothing_is_left_over, audit, rows

import kmscore
from tests.campaigns.disable import History, Use, campaign
from tests.campaigns.served_nodes import RETRYABLE, Client, ServedNodes


@pytest.mark.parametrize(("races", "pause"), [(150, 2.0), pytest.param(2000, 3.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_use_that_began_after_a_disable_is_served(tmp_path: Path, postgres: Postgres, database: str, races: int, pause: float) -> None:
    report = campaign(tmp_path, postgres, database, races, pause=pause)
    print(report)
    assert report.served_after_disable == []
    assert report.wrong_after_enable == []
    assert report.uses_while_disabled >= races
    assert report.troubles


def test_the_harness_would_see_it() -> None:
    history = History(disabled=[(10.0, 20.0), (30.0, 40.0)], enabled=[(0.0, 9.0), (21.0, 29.0)])
    good = [Use(0, 9.0, 11.0, "OK"), Use(0, 11.0, 12.0, "Rejected.Disabled"), Use(0, 19.0, 21.0, "OK"), Use(0, 20.5, 30.5, "OK")]
    late, early, stale = Use(1, 10.1, 19.9, "OK"), Use(0, 35.0, 36.0, "OK"), Use(1, 22.0, 23.0, "Rejected.Disabled")
    history.uses = [late, *good, early, stale]
    assert history.served_after_disable() == [late, early]
    assert history.refused_after_enable() == [stale]
    assert history.within_disable() == 3


# --- eight at once on an empty database ------------------------------------------------------------------------------------------------

STARTER = """
import sys, kmscore
with kmscore.open_kms(sys.argv[1], database_url=sys.argv[2], ticker=False) as kms:
    for level in sys.argv[3:]:
        key = kms.create_key(protection_level=level)
        blob = kms.encrypt(key.key_id, b"x").ciphertext_blob
        assert kms.decrypt(blob).plaintext == b"x"
"""


def start_together(homes: list[Path], url: str, environments: list[dict[str, str]], *levels: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, str(home), url, *levels],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for home, environment in zip(homes, environments, strict=True)
    ]
    failures = [said.decode() for child in children if (said := child.communicate()[0]) or child.returncode]
    assert not failures, failures[0]


def check_storm(home: Path, url: str, keys: int, **settings: str) -> None:
    """One migration, one identity, every key there, nothing left over."""
    with kmscore.open_kms(home, database_url=url, ticker=False, **settings) as kms:
        assert kms.list_keys().total_count == keys
        report = kms.reconcile()
        assert (report.abandoned, report.quarantined, report.missing, report.pending) == ((), (), (), ())
        store = kms._s.queries._datastore
        assert rows(store, "SELECT count(*) FROM schema_version") == [(1,)]
        assert len(rows(store, "SELECT * FROM facts WHERE name = 'instance_id'")) == 1
        assert_nothing_is_left_over(store)
        audit(store, home.parent / "again.db")


REPEATED = [1, pytest.param(5, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.mark.parametrize("times", REPEATED)
def test_eight_nodes_of_one_home_start_at_once_on_an_empty_database(tmp_path: Path, postgres: Postgres, times: int) -> None:
    for number in range(times):
        url = postgres.create_database(f"storm_{secrets.token_hex(4)}")
        home = tmp_path / str(number) / "home"
        start_together([home] * 8, url, [{}] * 8, "HSM", "SOFTWARE")
        check_storm(home, url, 16)


@pytest.mark.parametrize("times", REPEATED)
def test_eight_homes_start_at_once_on_an_empty_database(tmp_path: Path, postgres: Postgres, times: int) -> None:
    """As eight machines do: what they share is the database and the file with the root key."""
    for number in range(times):
        url = postgres.create_database(f"homes_{secrets.token_hex(4)}")
        homes = [tmp_path / str(number) / f"home{n}" for n in range(8)]
        for home in homes:
            home.mkdir(parents=True, mode=0o700)
            (home / "root.key").write_bytes(bytes(range(32)) + b"\n")
            (home / "root.key").chmod(0o600)
        start_together(homes, url, [{"KMS_PKCS11_MODULE": "none"}] * 8, "SOFTWARE")
        check_storm(homes[3], url, 8, pkcs11_module="none")


@pytest.mark.slow
def test_eight_homes_with_one_token_start_at_once_on_an_empty_database(tmp_path: Path, postgres: Postgres) -> None:
    """An operator's token, which every node reaches by the same settings."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    (tmp_path / "pin").write_text("12345678\n")
    (tmp_path / "pin").chmod(0o600)
    environment = {
        "SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf"),
        "KMS_PKCS11_TOKEN": "shared",
        "KMS_PKCS11_PIN_FILE": str(tmp_path / "pin"),
    }
    make = ["softhsm2-util", "--init-token", "--free", "--label", "shared", "--pin", "12345678", "--so-pin", "87654321"]
    subprocess.run(make, env={**os.environ, **environment}, check=True, capture_output=True)
    url = postgres.create_database(f"token_{secrets.token_hex(4)}")
    start_together([tmp_path / f"home{n}" for n in range(8)], url, [environment] * 8, "HSM", "SOFTWARE")
    # In a process of its own: SoftHSM reads its settings once.
    script = "import sys, kmscore\nwith kmscore.open_kms(sys.argv[1], database_url=sys.argv[2]) as kms: print(kms.list_keys().total_count)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "home0"), url],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("16\n", "")


# --- killed in turn under load -----------------------------------------------------------------------------------------------------------


class Steady:
    """A client that asks one node, and where it is of no use the other."""

    def __init__(self, served: ServedNodes, number: int) -> None:
        self.clients: list[Client] = [served.client(node) for node in range(len(served.nodes))]
        self.turn = number
        self.keys: list[str] = []
        self.blobs: list[str] = []
        self.failed: list[tuple[float, float, str]] = []  # by all nodes: asked at, answered at, code
        self.calls = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def ask(self, action: str, **params: str) -> dict[str, Any]:
        self.turn += 1
        asked = time.monotonic()
        while True:
            for node in range(len(self.clients)):
                answer = self.clients[(self.turn + node) % len(self.clients)].ask(action, **params)
                self.calls += 1
                if answer.status == 200:
                    return answer.body
                assert answer.code in RETRYABLE, answer
            self.failed.append((asked, time.monotonic(), answer.code))
            asked = time.monotonic()
            time.sleep(0.02)

    def run(self) -> None:
        while not self.over.is_set():
            self.keys.append(self.ask("CreateKey")["KeyMetadata"]["KeyId"])
            for _ in range(10):
                key = self.keys[-1 - self.turn % min(len(self.keys), 5)]
                self.blobs.append(self.ask("Encrypt", KeyId=key, Plaintext="eA==")["CiphertextBlob"])
                assert self.ask("Decrypt", CiphertextBlob=self.blobs[-1])["Plaintext"] == "eA=="


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_and_nodes_that_are_killed_in_turn_under_load(tmp_path: Path, postgres: Postgres, database: str) -> None:
    """Errors only while the database is down, for the other node takes over; none after it is back; nothing acknowledged is lost."""
    with ServedNodes(tmp_path, postgres, database) as served:
        load = [Steady(served, number) for number in range(4)]
        for client in load:
            client.thread.start()
        away: list[tuple[float, float]] = []
        for number in range(6):
            time.sleep(2)
            if number % 2:
                node = served.nodes[number // 2 % 2]
                node.kill()
                time.sleep(1)
                node.start()
            else:
                begun = time.monotonic()
                postgres.kill()
                time.sleep(1)
                postgres.start()
                away.append((begun, time.monotonic() + 1.5))
        time.sleep(2)
        for client in load:
            client.over.set()
        for client in load:
            client.thread.join()
        failed = [one for client in load for one in client.failed]
        print(
            sum(client.calls for client in load), "calls,", len(failed), "refused by both nodes, longest", max(b - a for a, b, _ in failed)
        )
        assert [one for one in failed if not any(begun <= one[1] and one[0] <= end for begun, end in away)] == []
        last = served.client(0)
        keys = [key for client in load for key in client.keys]
        for key in keys:
            assert last.ask("DescribeKey", KeyId=key).body["KeyMetadata"]["KeyState"] == "Enabled"
        blobs = [blob for client in load for blob in client.blobs]
        for blob in blobs:
            assert last.ask("Decrypt", CiphertextBlob=blob).body["Plaintext"] == "eA=="
        print(len(keys), "keys and", len(blobs), "blobs are there")
        assert keys and blobs
        for client in load:
            for each in client.clients:
                each.close()
        last.close()
    with kmscore.open_kms(served.home, database_url=database, pkcs11_module="none", ticker=False) as kms:
        time.sleep(1.5)  # the nodes were killed: their leases
        kms.reconcile()
        kms.reconcile()
        assert_nothing_is_left_over(kms._s.queries._datastore)
        audit(kms._s.queries._datastore, tmp_path / "again.db")
