"""The caller's side of an import: what a file holds, and wrapped bytes that openssl opens. Also the commands by hand, run in a shell."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from kmscore.cli.byhand import script
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import KeySpec
from kmscore.errors import KmsError
from kmscore.wrapping import MAX_FILE_BYTES, Material, read_material, wrap

RAW = bytes(range(32))
CURVES = {
    KeySpec.EC_P256: ec.SECP256R1(),
    KeySpec.EC_P256K: ec.SECP256K1(),
    KeySpec.EC_P384: ec.SECP384R1(),
    KeySpec.EC_P521: ec.SECP521R1(),
}
FORMS = [(encoding, form) for encoding in (Encoding.PEM, Encoding.DER) for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)]

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def pair() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def public(pair: rsa.RSAPrivateKey) -> bytes:
    return pair.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def pkcs8(pair: rsa.RSAPrivateKey) -> bytes:
    """Material far longer than a block of RSA."""
    return pair.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(work: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(KmsError) as caught:
        work(*arguments)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value.code, caught.value.message


# --- what a file holds -------------------------------------------------------------------------------------------------------------


def test_32_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    material = read_material(written(tmp_path / "raw", RAW))
    assert material == Material(KeySpec.AES_256, RAW)
    assert not material.is_private_key
    assert str(RAW) not in repr(material)


@pytest.mark.parametrize(("encoding", "form"), FORMS)
def test_private_keys_become_pkcs_8(tmp_path: Path, pair: rsa.RSAPrivateKey, encoding: Encoding, form: PrivateFormat) -> None:
    for spec, key in [(KeySpec.RSA_2048, pair), *((spec, ec.generate_private_key(curve)) for spec, curve in CURVES.items())]:
        path = written(tmp_path / spec, key.private_bytes(encoding, form, NoEncryption()))  # type: ignore[attr-defined]
        material = read_material(str(path))
        assert material.is_private_key
        assert material == Material(spec, key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("bits", [3072, 4096])
def test_larger_rsa_keys(tmp_path: Path, bits: int) -> None:
    key = rsa.generate_private_key(65537, bits)
    path = written(tmp_path / "key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert read_material(path).spec == f"RSA_{bits}"


@needs_openssl
@pytest.mark.parametrize(("curve", "how"), [("prime256v1", "named_curve"), ("secp256k1", "named_curve"), ("prime256v1", "explicit")])
def test_what_openssl_ecparam_writes_has_its_curve_by_name_afterwards(tmp_path: Path, curve: str, how: str) -> None:
    path = tmp_path / "key.pem"
    openssl("ecparam", "-name", curve, "-genkey", "-param_enc", how, "-out", path)
    assert path.read_bytes().startswith(b"-----BEGIN EC PARAMETERS-----")
    named = openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", stdin=openssl("pkey", "-in", path, "-ec_param_enc", "named_curve"))
    assert read_material(path).data == named


@needs_openssl
def test_a_curve_given_in_full_that_is_not_known_gets_a_hint(tmp_path: Path) -> None:
    openssl("ecparam", "-name", "secp256k1", "-genkey", "-param_enc", "explicit", "-out", tmp_path / "key.pem")
    code, message = refused(read_material, tmp_path / "key.pem")
    assert (code, "openssl pkey -ec_param_enc named_curve" in message) == ("InvalidKeyMaterial", True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds 0 bytes; material is 32 raw bytes"),
        (RAW[:31], "holds 31 bytes"),
        (RAW + b"\n", "holds 33 bytes"),
        (RAW.hex().encode(), "holds 64 bytes"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "or a private key in PEM or DER"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "or a private key in PEM or DER"),
        (b"0" * (MAX_FILE_BYTES + 5), "holds more than 65,536 bytes"),
    ],
)
def test_other_files_are_refused_with_their_size(tmp_path: Path, data: bytes, says: str) -> None:
    code, message = refused(read_material, written(tmp_path / "file", data))
    assert (code, says in message, str(tmp_path / "file") in message) == ("InvalidKeyMaterial", True, True)


def test_other_kinds_of_private_keys_are_refused_by_name(tmp_path: Path, pair: rsa.RSAPrivateKey) -> None:
    def said(key: Any, lock: Any = None, encoding: Encoding = Encoding.PEM) -> str:
        code, message = refused(
            read_material, written(tmp_path / "key", key.private_bytes(encoding, PrivateFormat.PKCS8, lock or NoEncryption()))
        )
        assert code == "InvalidKeyMaterial"
        return message

    assert "an RSA key of 1024 bits; those of 2048, 3072, 4096 bits" in said(rsa.generate_private_key(65537, 1024))
    assert "the curve secp224r1; those on secp256r1, secp256k1" in said(ec.generate_private_key(ec.SECP224R1()))
    assert "neither RSA nor on a curve" in said(ed25519.Ed25519PrivateKey.generate())
    assert "neither RSA nor on a curve" in said(dsa.generate_private_key(1024))
    for encoding in (Encoding.PEM, Encoding.DER):
        assert "encrypted under a passphrase" in said(pair, BestAvailableEncryption(b"x"), encoding)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(read_material, tmp_path / "none") == ("InvalidParameter", f"cannot read {tmp_path}/none: No such file or directory")
    assert refused(read_material, tmp_path)[0] == "InvalidParameter"


# --- wrapping ----------------------------------------------------------------------------------------------------------------------


def unwrapped(folder: Path, pair: rsa.RSAPrivateKey, algorithm: WrappingAlgorithm, wrapped: bytes) -> bytes:
    """By the openssl command; AES-KWP by `cryptography`, since `openssl enc -d` of it is not in every version."""
    key = written(folder / "pair.pem", pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    digest = algorithm.hash.replace("-", "").lower()
    oaep = ("rsa_padding_mode:oaep", f"rsa_oaep_md:{digest}", f"rsa_mgf1_md:{digest}")
    options = [word for option in (oaep if digest else ("rsa_padding_mode:pkcs1",)) for word in ("-pkeyopt", option)]
    size = pair.key_size // 8
    first = openssl("pkeyutl", "-decrypt", "-inkey", key, *options, stdin=wrapped[:size])
    if not algorithm.two_step:
        assert len(wrapped) == size
        return first
    assert len(first) == 32
    return aes_key_unwrap_with_padding(first, wrapped[size:])


@needs_openssl
@pytest.mark.parametrize("algorithm", WrappingAlgorithm)
def test_openssl_opens_what_is_wrapped(tmp_path: Path, pair: rsa.RSAPrivateKey, public: bytes, algorithm: WrappingAlgorithm) -> None:
    once, again = wrap(RAW, public, algorithm), wrap(RAW, public, algorithm.value)
    assert once != again
    assert unwrapped(tmp_path, pair, algorithm, once) == unwrapped(tmp_path, pair, algorithm, again) == RAW


@needs_openssl
@pytest.mark.parametrize("algorithm", [a for a in WrappingAlgorithm if a.two_step])
def test_two_steps_carry_any_size(
    tmp_path: Path, pair: rsa.RSAPrivateKey, public: bytes, pkcs8: bytes, algorithm: WrappingAlgorithm
) -> None:
    for material in (b"x", RAW[:15], pkcs8):
        assert unwrapped(tmp_path, pair, algorithm, wrap(material, public, algorithm)) == material


@pytest.mark.parametrize(("algorithm", "most"), [("RSAES_OAEP_SHA_256", 190), ("RSAES_OAEP_SHA_1", 214), ("RSAES_PKCS1_V1_5", 245)])
def test_one_step_carries_so_much_and_says_so(public: bytes, algorithm: str, most: int) -> None:
    assert len(wrap(b"x" * most, public, algorithm)) == 256
    code, message = refused(wrap, b"x" * (most + 1), public, algorithm)
    assert code == "InvalidKeyMaterial"
    assert f"at most {most} bytes, and these are {most + 1}; RSA_AES_KEY_WRAP_SHA_256 carries any" in message


def test_what_cannot_be_wrapped(public: bytes) -> None:
    assert refused(wrap, b"", public, "RSAES_OAEP_SHA_256")[0] == "InvalidKeyMaterial"
    code, message = refused(wrap, RAW, public, "SM2PKE")
    assert (code, '"WrappingAlgorithm"' in message) == ("InvalidParameter", True)
    curve = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for no_key in (b"", public[:-1], base64.b64encode(public), curve):
        code, message = refused(wrap, RAW, no_key, "RSAES_OAEP_SHA_256")
        assert (code, '"PublicKey"' in message) == ("InvalidParameter", True)


# --- by hand -----------------------------------------------------------------------------------------------------------------------


@needs_openssl
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [(name, a) for name in ("raw", "rsa 'key'.pem", "ec.der", "explicit.pem") for a in WrappingAlgorithm if name == "raw" or a.two_step],
)
def test_the_commands_by_hand_do_the_same(
    tmp_path: Path, pair: rsa.RSAPrivateKey, public: bytes, name: str, algorithm: WrappingAlgorithm
) -> None:
    """With a shell function in the place of `kms`."""
    file = tmp_path / name
    if name == "explicit.pem":
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-param_enc", "explicit", "-out", file)
    elif name == "ec.der":
        key = ec.generate_private_key(ec.SECP521R1())
        file.write_bytes(key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    else:
        file.write_bytes(RAW if name == "raw" else pair.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    material = read_material(file)
    answer = json.dumps({"ImportToken": "dG9r/W4=", "KeyId": "key-1", "PublicKey": base64.b64encode(public).decode()}, indent=2)
    (folder := tmp_path / "memory").mkdir()
    stub = f"mktemp() {{ command mktemp -d {folder}/import.XXXXXX; }}\n"
    stub += f'kms() {{ if [ "$1" = GetParametersForImport ]; then echo \'{answer}\'; else printf "%s\\n" "$@"; fi; }}\n'
    params = {"KeyId": "key-1", "KeyMaterialExpireUnix": "1900000000"}
    commands = script("kms", "ImportNextKeyMaterial", params, material.spec, str(file), algorithm, "RSA_2048")
    done = subprocess.run(["sh"], input=(stub + commands).encode(), capture_output=True, cwd="/", timeout=60, check=True)
    assert done.stderr == b""
    said = done.stdout.decode().splitlines()
    assert said[:5] == ["ImportNextKeyMaterial", "--KeyId", "key-1", "--KeyMaterialExpireUnix", "1900000000"]
    assert (said[5], said[7:]) == ("--EncryptedKeyMaterial", ["--ImportToken", "dG9r/W4="])
    assert unwrapped(tmp_path, pair, algorithm, base64.b64decode(said[6], validate=True)) == material.data
    assert not list(folder.iterdir())


def test_the_commands_by_hand_stop_at_the_first_that_fails() -> None:
    commands = script(
        "false", "ImportKeyMaterial", {"KeyId": "key-1"}, KeySpec.AES_256, "none", WrappingAlgorithm.RSAES_OAEP_SHA_1, "RSA_2048"
    )
    done = subprocess.run(["sh"], input=commands.encode(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
