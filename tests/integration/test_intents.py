"""Open intents between processes: whose they are, and what a removal waits for when another one comes in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import peers
import pytest
from test_kms import code

import kmscore
from kmscore import FixedClock, KmsError
from kmscore.bootstrap import open_kms
from kmscore.custody.fake import FakeKeeper, FakeToken

ALONE: dict[str, Any] = {"pkcs11_module": "none", "ticker": False}

# Changes a key and recovers what was interrupted, over and over: what another process's ticker does beside a caller of its own.
MEDDLER = """
import sys, time, kmscore
with kmscore.open_kms(sys.argv[1], pkcs11_module="none", ticker=False) as kms:
    print("ready", flush=True)
    end, number, abandoned = time.monotonic() + float(sys.argv[3]), 0, 0
    while time.monotonic() < end:
        number += 1
        kms.tag_resource(sys.argv[2], tags={"n": str(number)})
        abandoned += len(kms.reconcile().abandoned)
    print(abandoned)
"""

# Loads a key by opening a blob, and then holds it.
HOLDER = """
import sys, time, kmscore
kms = kmscore.open_kms(sys.argv[1], pkcs11_module="none", ticker=False)
kms.decrypt(bytes.fromhex(sys.argv[2]))
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def started(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready; killed at the end, should it still run."""
    with subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def meddle(home: Path, seconds: float) -> None:
    with kmscore.open_kms(home, **ALONE) as kms:
        key = kms.create_key(key_spec="EC_P256").key_id
        with started(MEDDLER, home, key, seconds) as other:
            while other.poll() is None:
                kms.rotate_key(key)
            assert other.stdout is not None
            assert other.stdout.read().strip() == "0"
        stored = kms._s.store.key(key)
        assert stored is not None
        assert len(stored.versions) > 10
        for version in stored.versions:  # each acknowledged one is there
            kms.asymmetric_sign(key, key_version_id=version.version_id, algorithm="ECDSA_SHA_256", digest=bytes(32))
        assert kms.reconcile().missing == ()


def test_an_attempt_is_its_owners_whoever_else_changes_the_key(tmp_path: Path) -> None:
    meddle(tmp_path / "home", 2)


@pytest.mark.slow
def test_an_attempt_is_its_owners_at_length(tmp_path: Path) -> None:
    meddle(tmp_path / "home", 20)


@pytest.mark.sqlite
def test_a_removal_does_not_destroy_what_another_one_added_before_all_have_let_go(tmp_path: Path) -> None:
    """An expiry is in the middle of its work; meanwhile somebody else finishes it, the material comes again, is in use in a process that
    stalls, and is deleted: that deletion waits, and the older one must not do its work for it."""
    home, clock = tmp_path / "home", FixedClock(datetime.now(UTC))
    with open_kms(home, clock=clock, eviction_wait_seconds=0.3, intent_wait_seconds=1.0, **ALONE) as kms:
        key = kms.create_key(origin="EXTERNAL").key_id
        offer = kms.get_parameters_for_import(key, wrapping_algorithm="RSAES_OAEP_SHA_1", wrapping_key_spec="RSA_2048")
        wrapped = peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", b"1" * 32)
        bring = {"encrypted_key_material": wrapped, "import_token": offer.import_token}
        kms.import_key_material(key, **bring, key_material_expire_unix=int(clock.now().timestamp()) + 60)
        clock.advance(timedelta(minutes=2))
        keeper = next(iter(kms._s.importing._keepers.values()))
        destroy, inside, go_on = keeper.destroy, threading.Event(), threading.Event()

        def stalls(material_id: bytes) -> None:
            if threading.current_thread() is older and not inside.is_set():
                inside.set()
                go_on.wait()
            destroy(material_id)

        older = threading.Thread(target=kms.run_due)
        keeper.destroy = stalls  # type: ignore[method-assign]
        older.start()
        inside.wait()
        assert kms._s.reconciler.recover().finished == (key,)
        kms.import_key_material(key, **bring)
        with started(HOLDER, home, kms.encrypt(key, b"x").ciphertext_blob.hex()) as holder:
            holder.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            assert code(kms.delete_key_material, key) == "ServiceUnavailableTemporary"
            go_on.set()
            older.join()
            assert code(kms.delete_key_material, key) == "ServiceUnavailableTemporary"  # it still holds the material
        kms.delete_key_material(key)
        assert [event["event"] for event in kms.history(key)][-1] == "MaterialDestroyed"


def test_the_same_material_again_repairs_a_loss(tmp_path: Path) -> None:
    token = FakeToken()
    with open_kms(tmp_path / "home", clock=FixedClock(datetime.now(UTC)), hsm=FakeKeeper(token)) as kms:
        key, material = kms.create_key(protection_level="HSM", origin="EXTERNAL").key_id, os.urandom(32)
        offer = kms.get_parameters_for_import(key, wrapping_algorithm="RSAES_OAEP_SHA_1", wrapping_key_spec="RSA_2048")
        bring = {"encrypted_key_material": peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", material), "import_token": offer.import_token}
        kms.import_key_material(key, **bring)
        blob = kms.encrypt(key, b"text").ciphertext_blob
        kms._s.ring.drop_idle()
        kms._s.ring.drop_idle()
        stored = kms._s.store.key(key)
        assert stored is not None
        del token.objects[bytes.fromhex(stored.versions[0].material_id)]
        assert code(kms.decrypt, blob) == "Rejected.Unavailable"
        assert len(kms.reconcile().missing) == 1
        kms.import_key_material(key, **bring)
        assert kms.decrypt(blob).plaintext == b"text"
        report = kms.reconcile()
        assert report == type(report)()
        assert kms.list_key_versions(key).total_count == 1


def test_offers_that_came_to_nothing_do_not_count(tmp_path: Path) -> None:
    token = FakeToken()
    with open_kms(tmp_path / "home", clock=FixedClock(datetime.now(UTC)), hsm=FakeKeeper(token)) as kms:
        key = kms.create_key(protection_level="HSM", origin="EXTERNAL").key_id
        ask = {"wrapping_algorithm": "RSAES_OAEP_SHA_1", "wrapping_key_spec": "RSA_2048"}
        for _ in range(9):
            token.faults.at("generate.before", KmsError("ServiceUnavailableTemporary", "the token stumbled"))
            assert code(kms.get_parameters_for_import, key, **ask) == "ServiceUnavailableTemporary"
        for _ in range(8):
            kms.get_parameters_for_import(key, **ask)
        assert code(kms.get_parameters_for_import, key, **ask) == "Rejected.LimitExceeded"


def test_offers_go_with_their_key_also_when_recovery_finishes_it(tmp_path: Path) -> None:
    token, clock = FakeToken(), FixedClock(datetime.now(UTC))
    with open_kms(tmp_path / "home", clock=clock, hsm=FakeKeeper(token)) as kms:
        key, material = kms.create_key(protection_level="HSM", origin="EXTERNAL").key_id, os.urandom(32)
        kms.schedule_key_deletion(key, pending_window_in_days=7)
        clock.advance(timedelta(days=6, hours=23))
        offer = kms.get_parameters_for_import(key, wrapping_algorithm="RSAES_OAEP_SHA_1", wrapping_key_spec="RSA_2048")
        kms.cancel_key_deletion(key)
        wrapped = peers.wrap(offer.public_key, "RSAES_OAEP_SHA_1", material)
        kms.import_key_material(key, encrypted_key_material=wrapped, import_token=offer.import_token)
        kms.schedule_key_deletion(key, pending_window_in_days=7)
        clock.advance(timedelta(days=6, hours=23))
        kms.get_parameters_for_import(key, wrapping_algorithm="RSAES_OAEP_SHA_1", wrapping_key_spec="RSA_2048")
        clock.advance(timedelta(hours=1))
        token.faults.at("destroy.before", KmsError("ServiceUnavailableTemporary", "gone"))
        assert kms.run_due().failed
        assert kms._s.reconciler.recover().finished == (key,)
        kms.run_due()
        assert kms._s.queries.live_imports(key) == []
        assert len(token.objects) == 1  # the root key
