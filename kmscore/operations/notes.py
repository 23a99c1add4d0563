"""What docs/API.md says beside an operation, in one breath. Data only."""

from __future__ import annotations

NOTES: dict[str, str] = {
    "CreateKey": "Level SOFTWARE unless told otherwise. RSA keys sign unless KeyUsage says `ENCRYPT/DECRYPT`. Origin `EXTERNAL`: the key"
    " waits for its material in state PendingImport. DKMSInstanceId chooses the custody, and with it the level",
    "DescribeKey": "No PrimaryKeyVersion for asymmetric keys (ListKeyVersions has theirs), nor before the first import",
    "DisableKey": "From when the answer comes, every process refuses every use",
    "ScheduleKeyDeletion": "7 to 366 days",
    "CancelKeyDeletion": "Enabled again; PendingImport where an EXTERNAL key has no material",
    "SetDeletionProtection": "KeyId or the ARN",
    "CreateKeyVersion": "Once in seven days, up to 50 versions; not for EXTERNAL or MAC keys",
    "UpdateRotationPolicy": "Symmetric keys of Origin Aliyun_KMS",
    "RotateKey": "Now, whatever the policy says",
    "UpdateExtendedRotationPolicy": "Asymmetric keys as well: callers name the version they use, so what is old stays good",
    "GetParametersForImport": "PublicKey is DER in base64. Good for 24 hours and 8 failed attempts; 8 at a time for a key",
    "ImportKeyMaterial": "Without an end it does not expire. A Disabled key stays Disabled",
    "ImportNextKeyMaterial": "Rotation of EXTERNAL keys: new material, primary from its date on",
    "DeleteKeyMaterial": "All versions; the same material can be imported again, and older ciphertext opens again",
    "TagResource": "Keys only",
    "Encrypt": "Plaintext is a string that comes back as it was; 8,192 bytes at most, which is 6,144 in base64",
    "Decrypt": "The ciphertext names key and version",
    "ReEncrypt": "Answers KeyId and KeyVersionId **of the source**, as the API says."
    " The last three, together, are for what AsymmetricEncrypt made",
    "ExportDataKey": "PublicKeyBlob: SubjectPublicKeyInfo, DER, base64",
    "EncryptBatch": "JSON arrays of base64; all or none",
    "AsymmetricSign": "The digest, not the message",
    "AsymmetricVerify": "Value of the answer is true or false; false is no error",
    "AsymmetricEncrypt": "Plaintext is base64 here",
    "AsymmetricDecrypt": "The ciphertext names neither key nor version: keep both",
    "GetPublicKey": "PEM",
    "GenerateMac": "0 to 6,144 bytes",
    "VerifyMac": "Value of the answer is true or false",
    "GetKeyPolicy": "The one that holds where none was set: everyone whom their own policy allows",
    "SetKeyPolicy": "Refused where nobody could change it again",
    "ListKmsInstances": "One for each protection level; DKMSInstanceId of CreateKey takes its id",
    "GetKmsInstance": "Status is Connected while the token answers, else Error",
    "GetDefaultKmsInstance": "SOFTWARE",
}
