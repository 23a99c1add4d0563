"""Kill -9 at random instants of a process that creates, rotates, encrypts and deletes on a real token.

Whatever was acknowledged must hold, no start may need a person, and after a last recovery every object in the token is explained.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from worker import CONTEXT, START, enable_all, read

import kmscore
from kmscore.bootstrap import open_kms

WORKER = Path(__file__).with_name("worker.py")
SEED = int(os.environ.get("KMS_KILL_SEED", "20300101"))


def kill_at(arguments: list[str], seconds: float) -> None:
    child = subprocess.Popen([sys.executable, str(WORKER), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.002)
    ended = child.poll() is not None
    if not ended:
        child.kill()
    told, _ = child.communicate()
    assert not ended, f"a start needed a person, or a worker failed: {told.decode()[-2000:]}"


def check(home: Path, rows: list[list[str]], day: int, sample: int | None) -> None:
    """Open once more: every acknowledged ciphertext opens, every acknowledged deletion that is due holds."""
    with open_kms(home, clock=kmscore.FixedClock(START + timedelta(days=day))) as kms:
        kms.run_due()
        enable_all(kms)
        report = kms.reconcile()
        assert report.quarantined == report.missing == report.pending == (), report
        assert kms.reconcile().swept == 0
        doomed = {row[1] for row in rows if row[0] in ("schedule?", "schedule")}
        blobs = [row for row in rows if row[0] == "blob"]
        for _, key, blob, text in blobs if sample is None else random.Random(SEED).sample(blobs, min(sample, len(blobs))):
            if key not in doomed:
                assert kms.decrypt(bytes.fromhex(blob), CONTEXT).plaintext == bytes.fromhex(text), f"lost under {key}"
        gone = {row[1] for row in rows if row[0] == "schedule" and int(row[2]) + 7 <= day}
        for key in gone:
            with pytest.raises(kmscore.KmsError, match="KeyNotFound"):
                kms.describe_key(key)
        for _, key, blob, _ in blobs:
            if key in gone:
                with pytest.raises(kmscore.KmsError, match="KeyNotFound"):
                    kms.decrypt(bytes.fromhex(blob), CONTEXT)
        versions = {row[2] for row in rows if row[0] == "rotated" and row[1] not in doomed}
        for key in {row[1] for row in rows if row[0] == "rotated" and row[1] not in doomed}:
            versions -= {v.key_version_id for n in range(1, 20) for v in kms.list_key_versions(key, page_number=n, page_size=100).items}
        assert not versions, "an acknowledged rotation was lost"


def test_a_torn_row_was_never_acknowledged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('["open", "1"]\n["key", "key-a"]\n["blob", "key-a", "00')
    assert read(str(log)) == [["open", "1"], ["key", "key-a"]]
    with log.open("a") as more:
        more.write('["open", "2"]\n')
    assert read(str(log))[-1] == ["open", "2"]


def campaign(directory: Path, cycles: int) -> None:
    chance = random.Random(SEED)
    home, log = directory / "home", directory / "log"
    for day in range(cycles):
        # Half of the kills fall into the start, where the token is opened, logged into and recovered.
        wait = chance.uniform(0, 0.9) if chance.random() < 0.5 else chance.uniform(0.7, 2.2)
        kill_at([str(home), str(log), str(chance.randrange(2**31)), str(day)], wait)
        if day % 50 == 49:
            check(home, read(str(log)), day, 200)
    rows = read(str(log))
    check(home, rows, cycles + 20, None)
    seen = {kind: sum(row[0] == kind for row in rows) for kind in ("open", "key", "blob", "rotated", "schedule")}
    print(f"seed {SEED}: {cycles} kills, {seen}")
    assert seen["key"] > 0


def test_a_few_kills(tmp_path: Path) -> None:
    campaign(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_kills(tmp_path: Path) -> None:
    campaign(tmp_path, 300)
