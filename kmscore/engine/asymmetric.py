"""Asymmetric operations and MACs: from the key ring through one call of a loaded key. No event, no command.

What needs the public half only is done without the custody.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, TypeVar, cast

from kmscore.custody.port import Buffer, MacKey, PrivateKey, PublicKeys, Secret
from kmscore.domain.algorithms import (
    ENCRYPTION,
    HASH_BYTES,
    MAC,
    SIGNING,
    AlgorithmFacts,
    EncryptionAlgorithm,
    MacAlgorithm,
    SigningAlgorithm,
    check_fits,
    max_oaep_bytes,
)
from kmscore.domain.specs import MAX_PLAINTEXT_BYTES, SPECS, KeyUsage
from kmscore.engine.arguments import buffer, choice, required
from kmscore.engine.keyring import KeyRing
from kmscore.engine.views import VersionUse
from kmscore.errors import KmsError, invalid
from kmscore.results import AsymmetricDecrypted, AsymmetricEncrypted, Mac, MacVerified, PublicKey, Signature, Verified

Answer = TypeVar("Answer")

UNAVAILABLE = "Rejected.Unavailable"
ATTEMPTS = 2  # before the last one, when material is dropped at the very moment of its use


class Asymmetric:
    def __init__(self, ring: KeyRing, public: PublicKeys) -> None:
        self._ring = ring
        self._public = public

    def sign(self, reference: str, version_id: str, algorithm: str, digest: Buffer) -> Signature:
        facts = SIGNING[choice(SigningAlgorithm, required(algorithm, "Algorithm"), "Algorithm")]
        data = _digest(digest, facts)

        def work(use: VersionUse) -> bytes:
            check_fits(use.ref.spec, facts)
            return self._private(use).sign(facts, data)

        use, value = self._use(reference, version_id, KeyUsage.SIGN_VERIFY, "AsymmetricSign", work)
        return Signature(use.key_id, use.version_id, value)

    def verify(self, reference: str, version_id: str, algorithm: str, digest: Buffer, value: Buffer) -> Verified:
        """True or false; a signature of a wrong length or form is simply not one."""
        facts = SIGNING[choice(SigningAlgorithm, required(algorithm, "Algorithm"), "Algorithm")]
        data = _digest(digest, facts)
        signature = buffer(value, "Value")
        use = self._ring.to_use(reference, required(version_id, "KeyVersionId"), KeyUsage.SIGN_VERIFY, "AsymmetricVerify")
        check_fits(use.ref.spec, facts)
        return Verified(use.key_id, use.version_id, self._public.verify(use.ref.public_key, facts, data, signature))

    def encrypt(self, reference: str, version_id: str, algorithm: str, plaintext: Buffer) -> AsymmetricEncrypted:
        facts = ENCRYPTION[choice(EncryptionAlgorithm, required(algorithm, "Algorithm"), "Algorithm")]
        data = buffer(plaintext, "Plaintext")
        use = self._ring.to_use(reference, required(version_id, "KeyVersionId"), KeyUsage.ENCRYPT_DECRYPT, "AsymmetricEncrypt")
        check_fits(use.ref.spec, facts)
        most = max_oaep_bytes(SPECS[use.ref.spec].bytes, facts.hash)
        if len(data) > most:
            raise invalid("Plaintext", f"It is at most {most} bytes with this key and algorithm.")
        return AsymmetricEncrypted(use.key_id, use.version_id, self._public.encrypt(use.ref.public_key, facts, data))

    def decrypt(self, reference: str, version_id: str, algorithm: str, ciphertext: Buffer) -> AsymmetricDecrypted:
        secret, use = self.decrypt_secret(reference, version_id, algorithm, ciphertext, "AsymmetricDecrypt")
        try:
            return AsymmetricDecrypted(secret.reveal(), use.key_id, use.version_id)
        finally:
            secret.close()

    def decrypt_secret(
        self, reference: str, version_id: str, algorithm: str, ciphertext: Buffer, operation: str, parameter: str = "Algorithm"
    ) -> tuple[Secret, VersionUse]:
        """The plaintext in the core's memory. Every ciphertext that does not decrypt is the one opaque error."""
        facts = ENCRYPTION[choice(EncryptionAlgorithm, required(algorithm, parameter), parameter)]
        data = buffer(ciphertext, "CiphertextBlob")

        def work(use: VersionUse) -> Secret:
            check_fits(use.ref.spec, facts)
            return self._private(use).decrypt_secret(facts, data)

        use, secret = self._use(reference, version_id, KeyUsage.ENCRYPT_DECRYPT, operation, work)
        return secret, use

    def public_key(self, reference: str, version_id: str) -> PublicKey:
        key = self._ring.view(reference, "GetPublicKey")
        if not SPECS[key.spec].is_asymmetric:
            raise KmsError("Rejected.UnsupportedOperation", "Only asymmetric keys have a public key.")
        use = self._ring.to_use(reference, required(version_id, "KeyVersionId"), key.usage, "GetPublicKey")
        return PublicKey(use.key_id, use.version_id, self._public.pem(use.ref.public_key))

    def mac(self, reference: str, algorithm: str, message: Buffer) -> Mac:
        use, value = self._mac(reference, algorithm, message, "GenerateMac")
        return Mac(use.key_id, algorithm, value)

    def verify_mac(self, reference: str, algorithm: str, message: Buffer, mac: Buffer) -> MacVerified:
        """True or false; a MAC that is cut short is not one."""
        given = buffer(mac, "Mac")
        use, value = self._mac(reference, algorithm, message, "VerifyMac")
        return MacVerified(use.key_id, algorithm, hmac.compare_digest(value, given))

    def _mac(self, reference: str, algorithm: str, message: Buffer, operation: str) -> tuple[VersionUse, bytes]:
        facts = MAC[choice(MacAlgorithm, required(algorithm, "Algorithm"), "Algorithm")]
        data = buffer(message, "Message", may_be_empty=True)
        if len(data) > MAX_PLAINTEXT_BYTES:
            raise invalid("Message", f"It is at most {MAX_PLAINTEXT_BYTES} bytes; use the MAC of a digest for more.")

        def work(use: VersionUse) -> bytes:
            check_fits(use.ref.spec, facts)
            return cast(MacKey, self._loaded(use)).mac(data)

        return self._use(reference, None, KeyUsage.GENERATE_VERIFY_MAC, operation, work)

    # --- how -----------------------------------------------------------------------------------------------------------------------

    def _use(
        self, reference: str, version_id: str | None, usage: KeyUsage, operation: str, work: Callable[[VersionUse], Answer]
    ) -> tuple[VersionUse, Answer]:
        """Find the version, and work with it; once more when its material was dropped at the same moment, or its object moved."""
        if usage is not KeyUsage.GENERATE_VERIFY_MAC:
            required(version_id, "KeyVersionId")
        attempt = 0
        while True:
            use = self._ring.to_use(reference, version_id, usage, operation)
            try:
                return use, work(use)
            except KmsError as error:
                if error.code != UNAVAILABLE or attempt == ATTEMPTS:
                    raise
                self._ring.reload(use)
                attempt += 1

    def _private(self, use: VersionUse) -> PrivateKey:
        return cast(PrivateKey, self._loaded(use))

    def _loaded(self, use: VersionUse) -> Any:
        loaded = self._ring.ready(use).loaded
        if loaded is None:
            raise KmsError(UNAVAILABLE, "the material was dropped at the same moment")
        return loaded


def _digest(digest: Buffer, facts: AlgorithmFacts) -> bytes:
    data = buffer(digest, "Digest")
    size = HASH_BYTES[facts.hash]
    if len(data) != size:
        raise invalid("Digest", f"It is {size} bytes of {facts.hash}.")
    return data
