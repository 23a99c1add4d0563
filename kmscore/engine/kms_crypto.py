"""Operations that use keys: encrypt, decrypt, data keys, signatures, MACs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kmscore.custody.port import Buffer
from kmscore.domain.specs import ContentKind
from kmscore.engine.arguments import choice, items, required
from kmscore.engine.crypto import Context
from kmscore.engine.engine import Engine
from kmscore.engine.views import KINDS
from kmscore.errors import KmsError, invalid
from kmscore.results import (
    AsymmetricDecrypted,
    AsymmetricEncrypted,
    DataKey,
    Decrypted,
    Encrypted,
    ExportedDataKey,
    Mac,
    MacVerified,
    PublicKey,
    Signature,
    Verified,
)


class CryptoOperations(Engine):
    # --- cryptography ------------------------------------------------------------------------------------------------------------

    def encrypt(
        self, key_id: str, plaintext: Buffer, encryption_context: Context = None, *, content: ContentKind = ContentKind.RAW
    ) -> Encrypted:
        """Encrypt 1 to 6,144 bytes under the primary version of a key named by id, alias or ARN."""
        kind = content if content in KINDS else choice(ContentKind, "", "Content")
        return self._crypto.encrypt(key_id, plaintext, encryption_context, kind)

    def decrypt(self, ciphertext_blob: Buffer, encryption_context: Context = None) -> Decrypted:
        return self._crypto.decrypt(ciphertext_blob, encryption_context)

    def encrypt_batch(self, key_id: str, plaintexts: Sequence[Buffer], encryption_context: Context = None) -> list[bytes]:
        """One blob for each plaintext. Raises the KmsError of the first item that failed, named by its index."""
        return _all_or_raise(self._crypto.encrypt_batch(key_id, items(plaintexts, "Plaintexts"), encryption_context))

    def decrypt_batch(self, ciphertext_blobs: Sequence[Buffer], encryption_context: Context = None) -> list[bytes]:
        """One plaintext for each blob, of one or several keys. Raises as `encrypt_batch` does."""
        return _all_or_raise(self._crypto.decrypt_batch(items(ciphertext_blobs, "CiphertextBlobs"), encryption_context))

    def try_encrypt_batch(self, key_id: str, plaintexts: Sequence[Buffer], encryption_context: Context = None) -> list[bytes | KmsError]:
        """As `encrypt_batch`, with the KmsError of a failed item in its place."""
        return self._crypto.encrypt_batch(key_id, items(plaintexts, "Plaintexts"), encryption_context)

    def try_decrypt_batch(self, ciphertext_blobs: Sequence[Buffer], encryption_context: Context = None) -> list[bytes | KmsError]:
        """As `decrypt_batch`, with the KmsError of a failed item in its place."""
        return self._crypto.decrypt_batch(items(ciphertext_blobs, "CiphertextBlobs"), encryption_context)

    def re_encrypt(
        self,
        ciphertext_blob: Buffer,
        *,
        destination_key_id: str,
        source_encryption_context: Context = None,
        destination_encryption_context: Context = None,
        source_key_id: str | None = None,
        source_key_version_id: str | None = None,
        source_encryption_algorithm: str | None = None,
    ) -> Encrypted:
        """Encrypt the content of a blob anew. The plaintext stays in the core; the answer names the source key (DECISIONS 29).

        A source key, version and algorithm are given for what AsymmetricEncrypt made, which names none itself.
        """
        destination = required(destination_key_id, "DestinationKeyId")
        if not (source_key_id or source_key_version_id or source_encryption_algorithm):
            return self._crypto.re_encrypt(ciphertext_blob, destination, source_encryption_context, destination_encryption_context)
        if source_encryption_context:
            raise invalid("SourceEncryptionContext", "What AsymmetricEncrypt made has none.")
        secret, use = self._asymmetric.decrypt_secret(
            required(source_key_id, "SourceKeyId"),
            required(source_key_version_id, "SourceKeyVersionId"),
            required(source_encryption_algorithm, "SourceEncryptionAlgorithm"),
            ciphertext_blob,
            "ReEncrypt",
            "SourceEncryptionAlgorithm",
        )
        try:
            sealed = self._crypto.encrypt_secret(destination, secret, destination_encryption_context)
        finally:
            secret.close()
        return Encrypted(sealed.ciphertext_blob, use.key_id, use.version_id)

    def generate_data_key(
        self,
        key_id: str,
        *,
        key_spec: str | None = None,
        number_of_bytes: int | None = None,
        encryption_context: Context = None,
    ) -> DataKey:
        return self._crypto.data_key(key_id, key_spec, number_of_bytes, encryption_context, reveal=True)

    def generate_data_key_without_plaintext(
        self,
        key_id: str,
        *,
        key_spec: str | None = None,
        number_of_bytes: int | None = None,
        encryption_context: Context = None,
    ) -> DataKey:
        return self._crypto.data_key(key_id, key_spec, number_of_bytes, encryption_context, reveal=False)

    def export_data_key(
        self,
        ciphertext_blob: Buffer,
        *,
        public_key_blob: Buffer,
        wrapping_algorithm: str,
        wrapping_key_spec: str,
        encryption_context: Context = None,
    ) -> ExportedDataKey:
        """What a blob holds, encrypted under a caller's RSA public key (SubjectPublicKeyInfo, DER)."""
        return self._s.exporting.export(ciphertext_blob, encryption_context, public_key_blob, wrapping_key_spec, wrapping_algorithm)

    def generate_and_export_data_key(
        self,
        key_id: str,
        *,
        public_key_blob: Buffer,
        wrapping_algorithm: str,
        wrapping_key_spec: str,
        key_spec: str | None = None,
        number_of_bytes: int | None = None,
        encryption_context: Context = None,
    ) -> ExportedDataKey:
        """A new data key, encrypted under a key here and under a caller's RSA public key; its plaintext is nowhere else."""
        return self._s.exporting.generate(
            key_id, key_spec, number_of_bytes, encryption_context, public_key_blob, wrapping_key_spec, wrapping_algorithm
        )

    # --- asymmetric keys and MACs ------------------------------------------------------------------------------------------------

    def asymmetric_sign(self, key_id: str, *, key_version_id: str, algorithm: str, digest: Buffer) -> Signature:
        """Sign a digest, as long as the algorithm's hash. ECDSA signatures are DER."""
        return self._asymmetric.sign(key_id, key_version_id, algorithm, digest)

    def asymmetric_verify(self, key_id: str, *, key_version_id: str, algorithm: str, digest: Buffer, value: Buffer) -> Verified:
        """Whether `value` is a signature of the digest: a boolean, whatever is wrong with it."""
        return self._asymmetric.verify(key_id, key_version_id, algorithm, digest, value)

    def asymmetric_encrypt(self, key_id: str, *, key_version_id: str, algorithm: str, plaintext: Buffer) -> AsymmetricEncrypted:
        """RSAES-OAEP under the public key; anyone can do the same with get_public_key."""
        return self._asymmetric.encrypt(key_id, key_version_id, algorithm, plaintext)

    def asymmetric_decrypt(self, key_id: str, *, key_version_id: str, algorithm: str, ciphertext_blob: Buffer) -> AsymmetricDecrypted:
        """Raises the one opaque InvalidParameter (CiphertextBlob) for whatever does not decrypt."""
        return self._asymmetric.decrypt(key_id, key_version_id, algorithm, ciphertext_blob)

    def get_public_key(self, key_id: str, *, key_version_id: str) -> PublicKey:
        return self._asymmetric.public_key(key_id, key_version_id)

    def generate_mac(self, key_id: str, *, algorithm: str, message: Buffer) -> Mac:
        """HMAC of 0 to 6,144 bytes."""
        return self._asymmetric.mac(key_id, algorithm, message)

    def verify_mac(self, key_id: str, *, algorithm: str, message: Buffer, mac: Buffer) -> MacVerified:
        return self._asymmetric.verify_mac(key_id, algorithm, message, mac)


def _all_or_raise(results: Iterable[bytes | KmsError]) -> list[bytes]:
    answers = []
    for index, item in enumerate(results):
        if isinstance(item, KmsError):
            raise KmsError(item.code, f"item {index}: {item.message}")
        answers.append(item)
    return answers
