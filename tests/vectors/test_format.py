"""What the engine writes is what docs/FORMAT.md says: read by a decoder that knows only that page, at both levels and in both suites."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from uuid import UUID

import pkcs11
import pytest
from cryptography.exceptions import InvalidTag
from independent import aes_blocks, canonical, decode, xaes_subkey
from pkcs11 import Attribute, KeyType, Mechanism

import kmscore
from kmscore import ContentKind
from kmscore.domain.specs import ProtectionLevel

# C2SP XAES-256-GCM, the two vectors that print their parts.
STEPS = [
    ("01" * 32, "c8612c9ed53fe43e8e005b828a1631a0bbcb6ab2f46514ec4f439fcfd0fa969b"),
    ("03" * 32, "e9c621d4cdd9b11b00a6427ad7e559aeedd66b3857646677748f8ca796cb3fd8"),
]


@pytest.mark.parametrize(("key", "subkey"), STEPS)
def test_the_decoder_itself(key: str, subkey: str) -> None:
    assert xaes_subkey(aes_blocks(bytes.fromhex(key)), b"ABCDEFGHIJKLMNOPQRSTUVWX").hex() == subkey


@pytest.mark.parametrize("spec", ["Aliyun_AES_256", "Aliyun_AES_192", "Aliyun_AES_128"])
def test_software_keys_and_their_material_at_rest(tmp_path: Path, spec: str) -> None:
    with kmscore.open_kms(tmp_path / "home", pkcs11_module="none") as kms:
        key = kms.create_key(key_spec=spec)
        context = {"table": "orders", "é": "𐀀"}
        raw = kms.encrypt(key.key_id, b"raw bytes", context).ciphertext_blob
        text = kms.encrypt(key.key_id, b"a string", content=ContentKind.TEXT).ciphertext_blob
        batch = kms.encrypt_batch(key.key_id, [b"1", b"2" * 6144], context)
        owners = {material: owner for material, (owner, _, _) in kms._s.queries.material_states().items()}
    root = (tmp_path / "home" / "root.key").read_bytes()[:32]  # and a newline
    with sqlite3.connect(tmp_path / "home" / "kms.db") as connection:
        rows = connection.execute("SELECT material_id, wrapped FROM software_material").fetchall()
    ((material_id, wrapped),) = [row for row in rows if owners[row[0]] == key.key_id]
    assert wrapped[:19] == bytes([1, 1, 2]) + bytes(16)
    material = decode(wrapped, root, b"kmscore software material" + material_id)
    assert len(material) * 8 == int(spec[-3:])
    assert raw[3:19] == UUID(key.primary_key_version).bytes
    assert decode(raw, material, canonical(context)) == b"raw bytes"
    assert decode(text, material, canonical({})) == b"a string"
    assert text[2] == 1
    assert [decode(blob, material, canonical(context)) for blob in batch] == [b"1", b"2" * 6144]
    with pytest.raises(InvalidTag):
        decode(raw, material, canonical({"table": "orders"}))


def test_hsm_keys_by_asking_the_token(tmp_path: Path) -> None:
    """Whoever holds the PIN can have the token compute AES of chosen blocks, and so open a blob without kmscore (HSM.md section 4)."""
    with kmscore.open_kms(tmp_path / "home") as kms:
        key = kms.create_key(protection_level="HSM")
        blob = kms.encrypt(key.key_id, b"in the token", {"a": "b"}).ciphertext_blob
        materials = kms._s.queries.material_states()
        (material_id,) = (m for m, (owner, _, _) in materials.items() if owner == key.key_id)
        keeper = kms._s.reconciler._keepers[ProtectionLevel.HSM]
        session = keeper._library.control.get_token(token_label="kmscore").open()  # type: ignore[attr-defined]
        (master,) = session.get_objects({Attribute.ID: material_id})
        assert master[Attribute.SENSITIVE] and not master[Attribute.EXTRACTABLE] and master[Attribute.LOCAL]
        with pytest.raises(pkcs11.AttributeSensitive):
            master[Attribute.VALUE]

        def blocks(data: bytes) -> bytes:
            derived = master.derive_key(
                KeyType.GENERIC_SECRET,
                8 * len(data),
                mechanism=Mechanism.AES_ECB_ENCRYPT_DATA,
                mechanism_param=data,
                capabilities=0,
                template={Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True, Attribute.PRIVATE: False},
            )
            return bytes(derived[Attribute.VALUE])

        assert decode(blob, blocks, canonical({"a": "b"})) == b"in the token"
