"""The operations that use keys, for table.py."""

from __future__ import annotations

from dataclasses import replace

from kmscore.domain.algorithms import EncryptionAlgorithm, MacAlgorithm, SigningAlgorithm
from kmscore.domain.specs import MAX_TEXT_BYTES, ContentKind
from kmscore.operations import params as p
from kmscore.operations import render
from kmscore.operations.kinds import Kind, Operation, Param, Target

_SIGNING = Param("Algorithm", "How to sign.", required=True, choices=tuple(SigningAlgorithm))
_ENCRYPTION = Param("Algorithm", "How to encrypt.", required=True, choices=tuple(EncryptionAlgorithm))
_MAC = Param("Algorithm", "The one that fits the key.", required=True, choices=tuple(MacAlgorithm))
_DIGEST = Param("Digest", "The digest of the message, as long as the algorithm's hash, in base64.", Kind.BYTES, required=True)
_MESSAGE = Param("Message", "0 to 6,144 bytes, in base64.", Kind.BYTES, required=True, may_be_empty=True, secret=True)

CRYPTOGRAPHY = (
    # --- cryptography --------------------------------------------------------------------------------------------------------------
    Operation(
        "Encrypt",
        "Encrypt a short string under the primary version.",
        "crypto-symmetric",
        (
            p.KEY_OR_ALIAS,
            Param(
                "Plaintext",
                "The string, by convention base64; Decrypt answers it as it is.",
                Kind.TEXT,
                required=True,
                maximum=MAX_TEXT_BYTES,
                secret=True,
            ),
            p.CONTEXT,
            p.DRY_RUN,
        ),
        render.encrypted,
        fixed={"content": ContentKind.TEXT},
    ),
    Operation(
        "Decrypt",
        "The string that was encrypted, or the base64 of a data key.",
        "crypto-symmetric",
        (p.BLOB, p.CONTEXT, *p.unoffered("Recipient"), p.DRY_RUN),
        render.decrypted,
    ),
    Operation(
        "ReEncrypt",
        "Encrypt the content of a ciphertext anew. Answers key and version of the source.",
        "crypto-symmetric",
        (
            replace(p.BLOB, target_unless="source_key_id"),
            replace(p.KEY_OR_ALIAS, name="DestinationKeyId"),
            replace(p.CONTEXT, name="SourceEncryptionContext", help="The context of the source, as JSON."),
            replace(p.CONTEXT, name="DestinationEncryptionContext", help="The context of the new ciphertext, as JSON."),
            Param("SourceKeyId", "The key of a source that AsymmetricEncrypt made: its id, ARN or alias/NAME.", target=Target.KEY),
            Param("SourceKeyVersionId", "The version of that key."),
            Param("SourceEncryptionAlgorithm", "The algorithm of that source.", choices=tuple(EncryptionAlgorithm)),
            p.DRY_RUN,
        ),
        render.encrypted,
    ),
    Operation(
        "GenerateDataKey",
        "A new data key, in clear and encrypted.",
        "crypto-symmetric",
        (*p.DATA_KEY, *p.unoffered("Recipient"), p.DRY_RUN),
        render.data_key,
    ),
    Operation(
        "GenerateDataKeyWithoutPlaintext", "A new data key, encrypted only.", "crypto-symmetric", (*p.DATA_KEY, p.DRY_RUN), render.data_key
    ),
    Operation(
        "ExportDataKey",
        "The data key that a ciphertext holds, encrypted under a public key of yours.",
        "crypto-symmetric",
        (p.BLOB, *p.EXPORT, p.CONTEXT, p.DRY_RUN),
        render.exported_data_key,
    ),
    Operation(
        "GenerateAndExportDataKey",
        "A new data key, encrypted under a key here and under a public key of yours.",
        "crypto-symmetric",
        (*p.DATA_KEY, *p.EXPORT, p.DRY_RUN),
        render.exported_data_key,
    ),
    Operation(
        "EncryptBatch",
        "Encrypt several byte strings in one go, all or none.",
        "crypto-symmetric",
        (
            p.KEY_OR_ALIAS,
            Param("Plaintexts", 'JSON array of base64: ["aGVsbG8="].', Kind.BLOBS, required=True, maximum=1000, secret=True),
            p.CONTEXT,
        ),
        render.ciphertext_blobs,
        extension=True,
        action="Encrypt",
    ),
    Operation(
        "DecryptBatch",
        "Decrypt several ciphertexts in one go, all or none.",
        "crypto-symmetric",
        (
            Param("CiphertextBlobs", "JSON array of base64.", Kind.BLOBS, required=True, maximum=1000, target=Target.BLOB),
            p.CONTEXT,
        ),
        render.plaintexts,
        extension=True,
        action="Decrypt",
    ),
    # --- asymmetric keys -----------------------------------------------------------------------------------------------------------
    Operation(
        "AsymmetricSign",
        "Sign a digest.",
        "crypto-asymmetric",
        (p.KEY_OR_ALIAS, p.VERSION, _SIGNING, _DIGEST, p.DRY_RUN),
        render.signature,
    ),
    Operation(
        "AsymmetricVerify",
        "Whether a signature is one of this digest.",
        "crypto-asymmetric",
        (
            p.KEY_OR_ALIAS,
            p.VERSION,
            _SIGNING,
            _DIGEST,
            Param("Value", "The signature, in base64.", Kind.BYTES, required=True),
            p.DRY_RUN,
        ),
        render.verified,
    ),
    Operation(
        "AsymmetricEncrypt",
        "Encrypt a few bytes under a public key.",
        "crypto-asymmetric",
        (
            p.KEY_OR_ALIAS,
            p.VERSION,
            _ENCRYPTION,
            Param("Plaintext", "The bytes, in base64; how many depends on key and algorithm.", Kind.BYTES, required=True, secret=True),
            p.DRY_RUN,
        ),
        render.encrypted,
    ),
    Operation(
        "AsymmetricDecrypt",
        "The bytes that were encrypted under a public key, in base64.",
        "crypto-asymmetric",
        (
            p.KEY_OR_ALIAS,
            p.VERSION,
            _ENCRYPTION,
            replace(p.BLOB, help="What AsymmetricEncrypt answered, in base64.", target=Target.NONE),
            *p.unoffered("Recipient"),
            p.DRY_RUN,
        ),
        render.asymmetric_decrypted,
    ),
    Operation(
        "GetPublicKey",
        "The public key of a version, in PEM.",
        "crypto-asymmetric",
        (p.KEY_OR_ALIAS, p.VERSION, p.DRY_RUN),
        render.public_key,
    ),
    # --- MACs ----------------------------------------------------------------------------------------------------------------------
    Operation(
        "GenerateMac",
        "The MAC of a message.",
        "crypto-mac",
        (p.KEY_OR_ALIAS, _MAC, _MESSAGE, p.DRY_RUN),
        render.mac,
    ),
    Operation(
        "VerifyMac",
        "Whether a MAC is the one of this message.",
        "crypto-mac",
        (p.KEY_OR_ALIAS, _MAC, _MESSAGE, Param("Mac", "The MAC, in base64.", Kind.BYTES, required=True), p.DRY_RUN),
        render.mac_verified,
    ),
)
