"""Private and MAC keys that are resident in a token, ready for use: every operation runs on the resident object, in the token.

AES keys are the core's (Token.xaes_key, Token.gcm_key).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Mechanism

from kmscore.custody import _p11, templates
from kmscore.custody.port import AeadKey, Buffer, Loaded
from kmscore.custody.templates import Role
from kmscore.custody.tokenerrors import is_trouble, patiently
from kmscore.domain.algorithms import HASH_BYTES, AlgorithmFacts, mac_hash
from kmscore.domain.specs import SPECS, KeySpec
from kmscore.errors import KmsError, TokenError

# EMSA-PKCS1-v1_5 (RFC 8017 section 9.2, note 1): what stands in front of the digest, since the digest is what we are given.
_DIGEST_INFO = {
    "SHA-256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "SHA-384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "SHA-512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_TRIAL_HASH = "SHA-256"


class _Resident:
    """A handle that is in use, or retired. Thread-safe."""

    def __init__(self, token: _p11.Token, handle: int, spec: KeySpec) -> None:
        self._token = token
        self._handle = handle
        self._bytes = SPECS[spec].bytes
        self._lock = threading.Lock()
        self._inside = 0
        self._retired = False

    def retire(self) -> bool:
        """Refuse further use. True when no call is in flight. Idempotent."""
        with self._lock:
            self._retired = True
            return not self._inside

    @contextmanager
    def _use(self) -> Iterator[int]:
        with self._lock:
            if self._retired:
                raise KmsError("Rejected.Unavailable", "The key material is no longer available here.")
            self._inside += 1
        try:
            yield self._handle
        finally:
            with self._lock:
                self._inside -= 1


class TokenPrivateKey(_Resident):
    """Implements port.PrivateKey. `raw`: RSA in the token, the padding taken off in the core."""

    def __init__(self, token: _p11.Token, handle: int, spec: KeySpec, *, raw: bool = False) -> None:
        super().__init__(token, handle, spec)
        self._raw = raw

    def sign(self, facts: AlgorithmFacts, digest: bytes) -> bytes:
        with self._use() as handle:
            if facts.scheme == "ECDSA":
                pair = self._token.sign(handle, Mechanism.ECDSA, digest, 2 * self._bytes)
                return encode_dss_signature(int.from_bytes(pair[: self._bytes]), int.from_bytes(pair[self._bytes :]))
            if facts.scheme == "PSS":
                return self._token.sign(handle, Mechanism.RSA_PKCS_PSS, digest, self._bytes, facts.hash)
            return self._token.sign(handle, Mechanism.RSA_PKCS, _DIGEST_INFO[facts.hash] + digest, self._bytes)

    def decrypt_secret(self, facts: AlgorithmFacts, ciphertext: Buffer) -> _p11.Secret:
        with self._use() as handle:
            return self._token.rsa_decrypt(handle, ciphertext, facts.hash, self._raw)


class TokenMacKey(_Resident):
    """Implements port.MacKey."""

    def __init__(self, token: _p11.Token, handle: int, spec: KeySpec) -> None:
        super().__init__(token, handle, spec)
        hash_name = mac_hash(spec)
        self._mechanism, self._size = templates.HMAC[hash_name], HASH_BYTES[hash_name]

    def mac(self, message: Buffer) -> bytes:
        with self._use() as handle:
            return self._token.sign(handle, self._mechanism, message, self._size)


def key_on(token: _p11.Token, handle: int, role: Role, spec: KeySpec) -> Loaded:
    """The key on an object of this role. Raises TokenError; some roles ask the token about the object, others only at the first use."""
    if role is Role.DERIVE:
        return cast(AeadKey, patiently(lambda: token.xaes_key(handle)))
    if role is Role.CRYPT:
        return cast(AeadKey, patiently(lambda: token.gcm_key(handle)))
    if role is Role.MAC:
        return TokenMacKey(token, handle, spec)
    if role in (Role.RSA_SIGN, Role.EC_SIGN, Role.RSA_DECRYPT, Role.RSA_DECRYPT_RAW):
        return TokenPrivateKey(token, handle, spec, raw=role is Role.RSA_DECRYPT_RAW)
    raise KmsError("InternalFailure", f"an object of role {role} is not loaded for use")


def role_by_trial(token: _p11.Token, handle: int, public_key: bytes) -> Role:
    """Which of the two ways to decrypt a resident RSA key allows. The object decides, by CKA_ALLOWED_MECHANISMS where the token heeds that:
    a token that learns RSAES-OAEP with SHA-256 by an update still holds keys that were made for the other way. Raises TokenError."""
    sealed = _p11.oaep_encrypt(public_key, _TRIAL_HASH, b"kmscore trial")
    try:
        token.rsa_decrypt(handle, sealed, _TRIAL_HASH, False).close()
    except TokenError as error:
        if is_trouble(error):
            raise
        token.rsa_decrypt(handle, sealed, _TRIAL_HASH, True).close()
        return Role.RSA_DECRYPT_RAW
    return Role.RSA_DECRYPT
