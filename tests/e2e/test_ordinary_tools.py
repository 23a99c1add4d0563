"""What anyone with the PIN and an ordinary PKCS#11 tool sees of a home's token, without kmscore."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import kmscore
from kmscore.config import load_settings

TOOL = shutil.which("pkcs11-tool")


def objects(home: Path) -> dict[str, str]:
    """CKA_ID in hex -> what pkcs11-tool says of the object."""
    assert TOOL is not None
    module = load_settings(home).pkcs11_module
    command = [TOOL, "--module", module, "--token-label", "kmscore", "--login", "--pin", (home / "pin").read_text().strip(), "-O"]
    environment = {**os.environ, "SOFTHSM2_CONF": str(home / "softhsm2.conf")}
    listing = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found = {}
    for text in re.split(r"(?=^\S.*Object;)", listing, flags=re.M):
        if match := re.search(r"ID:\s+([0-9a-f]+)", text):
            found[match[1]] = text
    return found


@pytest.mark.skipif(TOOL is None, reason="needs pkcs11-tool (Debian package opensc)")
def test_the_token_as_pkcs11_tool_shows_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with kmscore.open_kms(home) as kms:
        owners = {}
        for name, level, spec in (
            ("derives", "HSM", "Aliyun_AES_256"),
            ("encrypts", "HSM", "Aliyun_AES_128"),
            ("signs", "HSM", "EC_P256"),
            ("macs", "HSM", "HMAC_256"),
            ("software", "SOFTWARE", "Aliyun_AES_256"),
        ):
            owners[kms.create_key(protection_level=level, key_spec=spec).key_id] = name
        kms.rotate_key(next(key for key, name in owners.items() if name == "software"))
        materials = {m.hex(): owners.get(key, key) for m, (key, _, _) in kms._s.queries.material_states().items()}
    shown = objects(home)
    # The root key and the keys of level HSM, of the pair the private half only; of the software keys nothing.
    assert sorted(materials[object_id] for object_id in shown) == ["derives", "encrypts", "macs", "signs", "system/root"]
    assert sorted(materials.values()) == [
        "derives",
        "encrypts",
        "macs",
        "signs",
        "software",
        "software",
        "system/import-digest",
        "system/root",
    ]
    for object_id, text in shown.items():
        assert "Access:     sensitive, always sensitive, never extractable, local" in text
        # pkcs11-tool has no word for a secret key that signs.
        usage = {"encrypts": "encrypt, decrypt", "signs": "sign", "macs": "none"}.get(materials[object_id], "derive")
        assert text.startswith("Private Key Object; EC" if materials[object_id] == "signs" else "Secret Key Object;")
        assert f"Usage:      {usage}\n" in text
        assert re.search(rf"label:\s+kmscore/[0-9a-f]{{8}}/{object_id}\n", text)
