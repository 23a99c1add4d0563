"""ExportDataKey and GenerateAndExportDataKey: a data key under a caller's public key. It never is an object of Python."""

from __future__ import annotations

from collections.abc import Callable

from kmscore.custody.port import Buffer, PublicKeys, Secret
from kmscore.domain.algorithms import ENCRYPTION, AlgorithmFacts, EncryptionAlgorithm, WrappingKeySpec, max_oaep_bytes
from kmscore.domain.specs import SPECS, KeySpec
from kmscore.engine.arguments import buffer, choice, required
from kmscore.engine.crypto import Context, Crypto, data_key_bytes
from kmscore.errors import invalid
from kmscore.results import ExportedDataKey


class Exporting:
    def __init__(self, crypto: Crypto, public: PublicKeys, random_secret: Callable[[int], Secret]) -> None:
        self._crypto = crypto
        self._public = public
        self._random_secret = random_secret

    def export(self, blob: Buffer, context: Context, public_key: Buffer, wrapping_spec: str, algorithm: str) -> ExportedDataKey:
        """What a blob holds, under the public key."""
        der, facts, most = self._recipient(public_key, wrapping_spec, algorithm)
        secret, use = self._crypto.decrypt_secret(blob, context)
        try:
            if secret.size > most:
                raise invalid("CiphertextBlob", f"Its content is longer than the {most} bytes that this key and algorithm export.")
            return ExportedDataKey(use.key_id, use.version_id, self._public.encrypt(der, facts, secret))
        finally:
            secret.close()

    def generate(
        self,
        reference: str,
        key_spec: str | None,
        number_of_bytes: int | None,
        context: Context,
        public_key: Buffer,
        wrapping_spec: str,
        algorithm: str,
    ) -> ExportedDataKey:
        """A new data key: its blob, and the same under the public key."""
        der, facts, most = self._recipient(public_key, wrapping_spec, algorithm)
        size = data_key_bytes(key_spec, number_of_bytes)
        if size > most:
            raise invalid("NumberOfBytes", f"This key and algorithm export at most {most} bytes.")
        secret = self._random_secret(size)
        try:
            sealed = self._crypto.encrypt_secret(reference, secret, context)
            exported = self._public.encrypt(der, facts, secret)
        finally:
            secret.close()
        return ExportedDataKey(sealed.key_id, sealed.key_version_id, exported, sealed.ciphertext_blob)

    def _recipient(self, public_key: Buffer, wrapping_spec: str, algorithm: str) -> tuple[bytes, AlgorithmFacts, int]:
        """The caller's key, how to encrypt under it, and how many bytes at most."""
        der = buffer(public_key, "PublicKeyBlob")
        spec = choice(WrappingKeySpec, required(wrapping_spec, "WrappingKeySpec"), "WrappingKeySpec")
        facts = ENCRYPTION[choice(EncryptionAlgorithm, required(algorithm, "WrappingAlgorithm"), "WrappingAlgorithm")]
        bits = SPECS[KeySpec(spec)].bits
        if self._public.rsa_bits(der) != bits:
            raise invalid("PublicKeyBlob", f"It is SubjectPublicKeyInfo in DER of an RSA key of {bits} bits.")
        return der, facts, max_oaep_bytes(bits // 8, facts.hash)
