"""Run by test_kills.py in a process of its own, until it is killed: drives an engine and writes down, durably, what was acknowledged.

Usage: worker.py HOME LOG SEED DAY
"""

from __future__ import annotations

import json
import os
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import kmscore
from kmscore.engine.kms import Kms

START = datetime(2030, 1, 1, tzinfo=UTC)
CONTEXT = {"test": "kills"}


def read(log: str) -> list[list[str]]:
    """Every whole row. A kill may tear the last write where a page of the file ends: nobody was told of that row."""
    if not os.path.exists(log):
        return []
    *lines, torn = Path(log).read_bytes().split(b"\n")
    if torn:
        os.truncate(log, os.path.getsize(log) - len(torn))
    return [json.loads(line) for line in lines]


def enable_all(kms: Kms) -> None:
    """A worker may have been killed between a disable and the enable that follows it."""
    while page := kms.list_keys(filters={"KeyState": ["Disabled"]}, page_size=100).items:
        for item in page:
            kms.enable_key(item.key_id)


def main(home: str, log: str, seed: int, day: int) -> None:
    chance = random.Random(seed)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(*row: str) -> None:
        os.write(out, (json.dumps(row) + "\n").encode())
        os.fsync(out)

    rows = read(log)
    doomed = {row[1] for row in rows if row[0] in ("schedule?", "schedule")}
    keys = [row[1] for row in rows if row[0] == "key" and row[1] not in doomed]
    with kmscore.open_kms(home, clock=kmscore.FixedClock(START + timedelta(days=day))) as kms:
        note("open", str(day))
        kms.run_due()
        enable_all(kms)
        while True:
            step = chance.random()
            if step < 0.2 or len(keys) < 2:
                level = chance.choice(["HSM", "SOFTWARE"])
                keys.append(kms.create_key(protection_level=level, key_spec=chance.choice(["Aliyun_AES_256", "Aliyun_AES_128"])).key_id)
                note("key", keys[-1])
            elif step < 0.7:
                key, text = chance.choice(keys), os.urandom(24)
                blob = kms.encrypt(key, text, CONTEXT).ciphertext_blob
                note("blob", key, blob.hex(), text.hex())
            elif step < 0.85:
                key = chance.choice(keys)
                note("rotated", key, kms.rotate_key(key).key_version_id)
            elif step < 0.92:
                key = chance.choice(keys)
                kms.disable_key(key)
                kms.enable_key(key)
            elif step < 0.96:
                key = chance.choice(keys)
                kms.create_alias(key, alias_name=f"alias/{os.urandom(4).hex()}")
            else:
                key = keys.pop(chance.randrange(len(keys)))
                note("schedule?", key)
                kms.schedule_key_deletion(key, pending_window_in_days=7)
                note("schedule", key, str(day))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
