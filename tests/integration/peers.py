"""What stands on the other side of our operations in the tests: `cryptography` and the `openssl` command, and an independent XAES."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

HASHES: dict[str, hashes.HashAlgorithm] = {"1": hashes.SHA1(), "256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
OPENSSL_DIGEST = {"1": "sha1", "256": "sha256", "384": "sha384", "512": "sha512"}
CURVES: dict[str, type[ec.EllipticCurve]] = {
    "EC_P256": ec.SECP256R1,
    "EC_P256K": ec.SECP256K1,
    "EC_P384": ec.SECP384R1,
    "EC_P521": ec.SECP521R1,
}


def size_of(algorithm: str) -> str:
    """The number in the name of its hash."""
    return algorithm.rsplit("_", 1)[1]


def new_private_key(spec: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    if spec.startswith("RSA"):
        return rsa.generate_private_key(65537, int(spec[4:]))
    return ec.generate_private_key(CURVES[spec]())


def pkcs8(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def digest_of(algorithm: str, message: bytes) -> bytes:
    digest = hashes.Hash(HASHES[size_of(algorithm)])
    digest.update(message)
    return digest.finalize()


def _padding(algorithm: str) -> padding.AsymmetricPadding:
    chosen = HASHES[size_of(algorithm)]
    return padding.PSS(padding.MGF1(chosen), chosen.digest_size) if "PSS" in algorithm else padding.PKCS1v15()


def sign(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, algorithm: str, digest: bytes) -> bytes:
    hashed = Prehashed(HASHES[size_of(algorithm)])
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(digest, _padding(algorithm), hashed)
    return key.sign(digest, ec.ECDSA(hashed))


def verify(pem: str, algorithm: str, digest: bytes, signature: bytes) -> bool:
    key = serialization.load_pem_public_key(pem.encode())
    hashed = Prehashed(HASHES[size_of(algorithm)])
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, _padding(algorithm), hashed)
        else:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(signature, digest, ec.ECDSA(hashed))
    except InvalidSignature:
        return False
    return True


def oaep(algorithm: str) -> padding.OAEP:
    chosen = HASHES[size_of(algorithm)]
    return padding.OAEP(padding.MGF1(chosen), chosen, None)


def encrypt(public_key: bytes, algorithm: str, plaintext: bytes) -> bytes:
    """RSAES under a public key in PEM or DER."""
    load = serialization.load_pem_public_key if public_key.startswith(b"-----") else serialization.load_der_public_key
    key = load(public_key)
    assert isinstance(key, rsa.RSAPublicKey)
    return key.encrypt(plaintext, padding.PKCS1v15() if "PKCS1" in algorithm else oaep(algorithm))


def wrap(public_key: bytes, algorithm: str, material: bytes) -> bytes:
    """Material as an import wants it, by `cryptography`."""
    if not algorithm.startswith("RSA_AES_KEY_WRAP"):
        return encrypt(public_key, algorithm, material)
    kek = os.urandom(32)
    return encrypt(public_key, algorithm, kek) + aes_key_wrap_with_padding(kek, material)


# --- the openssl command -------------------------------------------------------------------------------------------------------------


def openssl(*arguments: object, data: bytes | None = None) -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=True).stdout


class Files:
    """Named files for the openssl command."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kms-openssl-")

    def __call__(self, name: str, data: bytes) -> Path:
        path = Path(self._directory.name, name)
        path.write_bytes(data)
        return path

    def close(self) -> None:
        self._directory.cleanup()


def _pkey_options(algorithm: str) -> list[str]:
    if "ECDSA" in algorithm:
        return []
    if algorithm == "RSAES_PKCS1_V1_5":
        return ["-pkeyopt", "rsa_padding_mode:pkcs1"]
    md = OPENSSL_DIGEST[size_of(algorithm)]
    if "OAEP" in algorithm or "KEY_WRAP" in algorithm:
        names = {"rsa_padding_mode": "oaep", "rsa_oaep_md": md, "rsa_mgf1_md": md}
    elif "PSS" in algorithm:
        names = {"digest": md, "rsa_padding_mode": "pss", "rsa_pss_saltlen": "digest", "rsa_mgf1_md": md}
    else:
        names = {"digest": md, "rsa_padding_mode": "pkcs1"}
    return [word for name, value in names.items() for word in ("-pkeyopt", f"{name}:{value}")]


def openssl_verifies(files: Files, pem: str, algorithm: str, digest: bytes, signature: bytes) -> bool:
    command = ["pkeyutl", "-verify", "-pubin", "-inkey", files("public.pem", pem.encode()), "-in", files("digest", digest)]
    try:
        openssl(*command, "-sigfile", files("signature", signature), *_pkey_options(algorithm))
    except subprocess.CalledProcessError:
        return False
    return True


def openssl_encrypt(files: Files, public_key: bytes, algorithm: str, plaintext: bytes) -> bytes:
    form = "PEM" if public_key.startswith(b"-----") else "DER"
    command = ["pkeyutl", "-encrypt", "-pubin", "-keyform", form, "-inkey", files("public", public_key), "-in", files("plain", plaintext)]
    return openssl(*command, *_pkey_options(algorithm))


def openssl_wrap(files: Files, public_key: bytes, algorithm: str, material: bytes) -> bytes:
    """Material as an import wants it, by the openssl command."""
    if not algorithm.startswith("RSA_AES_KEY_WRAP"):
        return openssl_encrypt(files, public_key, algorithm, material)
    kek = os.urandom(32)
    wrapped = openssl("enc", "-id-aes256-wrap-pad", "-K", kek.hex(), "-iv", "A65959A6", "-in", files("material", material))
    return openssl_encrypt(files, public_key, algorithm, kek) + wrapped
