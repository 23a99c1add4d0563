"""The caller's side of an import of key material: read what is to be imported, and wrap it under the public key of the service.

For people and clients who bring keys; the service itself never comes by here. It stands on `cryptography` alone, and the material lies
open in Python's memory, where nothing can wipe it: run it where the material may be seen, and let the process end soon.

    material = read_material("orders.pem")
    offer = kms.get_parameters_for_import(key_id, wrapping_algorithm="RSA_AES_KEY_WRAP_SHA_256", wrapping_key_spec="RSA_2048")
    wrapped = wrap(material.data, offer.public_key, "RSA_AES_KEY_WRAP_SHA_256")
    kms.import_key_material(key_id, encrypted_key_material=wrapped, import_token=offer.import_token)
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

from kmscore.domain.algorithms import WrappingAlgorithm, max_oaep_bytes
from kmscore.domain.specs import SPECS, Family, KeySpec
from kmscore.errors import KmsError, invalid

AES_BYTES = 32  # raw material of Aliyun_AES_256, and the key of the two-step algorithms
PKCS1_BYTES = 11  # what the padding takes at least (RFC 8017 section 7.2.1)
MAX_FILE_BYTES = 64 * 1024  # no private key that is offered comes near

_RSA = {facts.bits: spec for spec, facts in SPECS.items() if facts.family is Family.RSA}
_CURVES = {
    ec.SECP256R1.name: KeySpec.EC_P256,
    ec.SECP256K1.name: KeySpec.EC_P256K,
    ec.SECP384R1.name: KeySpec.EC_P384,
    ec.SECP521R1.name: KeySpec.EC_P521,
}


@dataclass(frozen=True, slots=True)
class Material:
    """`data` is what is to be wrapped: 32 raw bytes, or a private key as PKCS#8 in DER. `spec` says of which keys it is the material."""

    spec: KeySpec
    data: bytes = field(repr=False)

    @property
    def is_private_key(self) -> bool:
        return SPECS[self.spec].is_asymmetric


def read_material(path: str | os.PathLike[str]) -> Material:
    """Read a file of 32 raw bytes, or of a private key in PEM or DER, PKCS#8 or traditional.

    Raises KmsError InvalidParameter when there is no such file, InvalidKeyMaterial when it holds no material that a key here can have.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KmsError("InvalidParameter", f"cannot read {name}: {error.strerror}") from None
    if len(data) == AES_BYTES:
        return Material(KeySpec.AES_256, data)
    load = serialization.load_pem_private_key if b"-----BEGIN " in data else serialization.load_der_private_key
    try:
        key = load(data, None)
    except TypeError:  # what `cryptography` says of a key that needs a password
        raise _refused(f"{name} is encrypted under a passphrase; write it anew without one: openssl pkcs8 -topk8 -nocrypt") from None
    except (ValueError, UnsupportedAlgorithm):
        size = f"more than {MAX_FILE_BYTES:,}" if len(data) > MAX_FILE_BYTES else f"{len(data):,}"
        raise _refused(
            f"{name} holds {size} bytes; material is {AES_BYTES} raw bytes (no hexadecimal, no base64, no end of line)"
            " or a private key in PEM or DER, its curve by name (openssl pkey -ec_param_enc named_curve)"
        ) from None
    if isinstance(key, rsa.RSAPrivateKey):
        spec = _RSA.get(key.key_size)
        kind = f"an RSA key of {key.key_size} bits; those of {', '.join(map(str, _RSA))} bits can be imported"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        spec = _CURVES.get(key.curve.name)
        kind = f"a key on the curve {key.curve.name}; those on {', '.join(_CURVES)} can be imported"
    else:
        spec, kind = None, "a private key that is neither RSA nor on a curve that is offered"
    if spec is None:
        raise _refused(f"{name} is {kind}")
    encoded = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Material(spec, encoded)


def wrap(material: bytes, public_key_der: bytes, algorithm: str) -> bytes:
    """What ImportKeyMaterial takes as EncryptedKeyMaterial. `public_key_der` and `algorithm` are those of GetParametersForImport.

    RSA_AES_KEY_WRAP_*: a new AES-256 key under RSAES-OAEP, followed by the material under AES-KWP (RFC 5649) with that key. Raises
    KmsError InvalidParameter for an algorithm or a public key that is none, InvalidKeyMaterial for more than the algorithm can carry.
    """
    try:
        chosen = WrappingAlgorithm(algorithm)
    except ValueError:
        raise invalid("WrappingAlgorithm", f"It is one of {', '.join(WrappingAlgorithm)}.") from None
    key = _public_key(public_key_der)
    if not material:
        raise _refused("there is no material")
    if not chosen.two_step:
        return _encrypt(key, chosen, material)
    wrapping_key = secrets.token_bytes(AES_BYTES)
    return _encrypt(key, chosen, wrapping_key) + aes_key_wrap_with_padding(wrapping_key, material)


def _public_key(der: bytes) -> rsa.RSAPublicKey:
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, rsa.RSAPublicKey):
        raise invalid("PublicKey", "It is SubjectPublicKeyInfo in DER of an RSA key, what GetParametersForImport answers in base64.")
    return key


def _encrypt(key: rsa.RSAPublicKey, algorithm: WrappingAlgorithm, data: bytes) -> bytes:
    size = (key.key_size + 7) // 8
    most = max_oaep_bytes(size, algorithm.hash) if algorithm.hash else size - PKCS1_BYTES
    if len(data) > most:
        raise _refused(
            f"{algorithm.value} under {key.key_size} bits carries at most {most} bytes, and these are {len(data):,};"
            " RSA_AES_KEY_WRAP_SHA_256 carries any"
        )
    if not algorithm.hash:
        return key.encrypt(data, padding.PKCS1v15())
    digest = hashes.SHA1() if algorithm.hash == "SHA-1" else hashes.SHA256()  # noqa: S303 - RSAES-OAEP with SHA-1 is the API's
    return key.encrypt(data, padding.OAEP(padding.MGF1(digest), digest, None))


def _refused(why: str) -> KmsError:
    return KmsError("InvalidKeyMaterial", why)
