"""The one error type that crosses a room, and the table of its codes.

A code is the wire's own (Alibaba Cloud KMS 2016-01-20); clients match on it, never on the message. Errors carry plain strings and
numbers only, so they pickle, and never a key byte, a plaintext, a PIN or a token.
"""

from __future__ import annotations

from typing import NamedTuple

from kmscore.counts import TOKEN_ERRORS, count


class Code(NamedTuple):
    """`when` it is answered, for docs/API.md. `retryable`: may the very same call succeed later?"""

    status: int  # of HTTP
    when: str
    retryable: bool = False


CODES: dict[str, Code] = {
    "AccessDeniedError": Code(403, "DryRun: the caller may not do it"),
    "AliasAlreadyExists": Code(400, "the alias names a key already"),
    "DryRunOperationError": Code(400, "DryRun: the call would have succeeded"),
    "Duplicate.TagKey": Code(400, "a tag key is given twice"),
    "EntityAlreadyExists.User": Code(409, "there is a user of that name (command line and library only)"),
    "EntityNotExist.User": Code(404, "there is no such user (command line and library only)"),
    "ExpiredImportToken": Code(400, "the import token is older than 24 hours"),
    "Forbidden.AccessKey": Code(403, "the access key is disabled"),
    "Forbidden.AliasNotFound": Code(404, "the alias names no key"),
    "Forbidden.DKMSInstanceNotFound": Code(403, "there is no such instance"),
    "Forbidden.KeyNotFound": Code(404, "there is no such key, or it is destroyed, or a ciphertext names none that is here"),
    "Forbidden.KeyVersionNotFound": Code(404, "the key has no such version"),
    "Forbidden.NoPermission": Code(403, "neither the caller's policy nor the key's allows it, or one of them denies it"),
    "Forbidden.Opened": Code(400, "OpenKmsService: the service is always open"),
    "Forbidden.ResourceNotFound": Code(404, "there is no policy of that name"),
    "IncompleteSignature": Code(400, "the request is not signed, half signed, or signed in two ways"),
    "InternalFailure": Code(
        500,
        "a fault of the service, whose log has the RequestId; on the command line also: a home, setting or connection is not as it must be",
    ),
    "InvalidAccessKeyId.NotFound": Code(404, "there is no such access key"),
    "InvalidApi.NotFound": Code(404, "the API has no such operation"),
    "InvalidImportToken": Code(400, "the import token is not genuine, belongs to another key, or has failed eight times"),
    "InvalidKeyMaterial": Code(400, "the wrapped material is not what it must be, or not the same as before"),
    "InvalidParameter": Code(400, "a parameter is malformed or out of range; also every ciphertext that does not decrypt"),
    "InvalidParameter.TagKey": Code(400, "a tag key is not allowed"),
    "InvalidParameter.TagValue": Code(400, "a tag value is not allowed"),
    "InvalidResourceId.NotFound": Code(404, "one of several resources is not there"),
    "InvalidSignatureMethod": Code(400, "the signature is of a kind that is not known"),
    "InvalidTimeStamp.Expired": Code(400, "the request was stamped more than 15 minutes from now, or before the machine was started"),
    "InvalidTimeStamp.Format": Code(400, "the stamp is not YYYY-MM-DDThh:mm:ssZ"),
    "MissingParameter": Code(400, "a parameter is needed and absent or empty"),
    "ParseRequestParameterException": Code(400, "the request cannot be read in one way only: encoding, size, body, a name twice"),
    "Rejected.Disabled": Code(409, "the key is Disabled"),
    "Rejected.LimitExceeded": Code(400, "a quota, or the number of versions, offers, uses or access keys, is used up"),
    "Rejected.PendingDeletion": Code(409, "the key waits for its deletion"),
    "Rejected.PendingImport": Code(409, "the key has no material, or it expired"),
    "Rejected.StateModifiedFailed": Code(409, "the state of the key does not allow this change"),
    "Rejected.Throttling": Code(429, "the access key sends more than it may; the headers tell when to come again", retryable=True),
    "Rejected.Unavailable": Code(409, "the custody does not find the material of the key"),
    "Rejected.UnsupportedOperation": Code(400, "the key cannot do this, or must not now (age of its version, deletion protection)"),
    "ServiceUnavailableTemporary": Code(503, "store, token or service cannot answer now; the same call may succeed later", retryable=True),
    "SignatureDoesNotMatch": Code(400, "the signature is not one of this request by this access key"),
    "SignatureNonceUsed": Code(400, "the request was seen before"),
    "Unsupported.Alias": Code(400, "this operation takes an id or ARN, not an alias"),
    "Unsupported.Origin": Code(400, "only keys of Origin EXTERNAL are imported"),
    "Unsupported.ProtectionLevel": Code(400, "the service has no token for level HSM"),
    "UnsupportedHTTPMethod": Code(403, "another method than GET and POST"),
    "UnsupportedOperation": Code(400, "the operation, parameter or kind of credentials is known and not offered here"),
    "ValidationError": Code(400, "DryRun: the call would have been refused; the message tells with what"),
}


class KmsError(Exception):
    """What a caller of kmscore sees when a call is refused or fails.

    `code` is the wire's code, `status` its HTTP status, `retryable` whether the same call may succeed later without any change.
    """

    request_id = ""  # of a call to a service elsewhere

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.status, _, self.retryable = CODES[code]

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class TokenError(KmsError):
    """A PKCS#11 call failed. `rv` is the CK_RV, `function` the C_ function; `code` says what it means to the caller."""

    def __init__(self, rv: int, function: str, name: str = "", code: str = "ServiceUnavailableTemporary") -> None:
        Exception.__init__(self, rv, function, name, code)
        self.rv = rv
        self.function = function
        self.name = name or f"CKR 0x{rv:x}"
        count(TOKEN_ERRORS, self.name if self.name.startswith("CKR_") else f"CKR 0x{rv:x}")  # here all of them pass, the core's too
        self.code = code
        self.message = f"the token refused {function}: {self.name}"
        self.status, _, self.retryable = CODES[code]


class SetupError(KmsError):
    """The home, the token or the settings are not as they must be; the message says what to do. Nothing was changed."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.code = "InternalFailure"
        self.message = message
        self.status, _, self.retryable = CODES[self.code]


class Conflict(KmsError):
    """Another writer appended to the same stream first. The engine decides again on the fresh state; callers never see it."""

    def __init__(self, stream: str) -> None:
        Exception.__init__(self, stream)
        self.code = "ServiceUnavailableTemporary"
        self.message = f"{stream} was changed at the same time; try again"
        self.status, _, self.retryable = CODES[self.code]


def missing(parameter: str) -> KmsError:
    return KmsError("MissingParameter", f'The parameter "{parameter}" is needed but not provided.')


def invalid(parameter: str, why: str = "") -> KmsError:
    return KmsError("InvalidParameter", f'The specified parameter "{parameter}" is not valid.' + (f" {why}" if why else ""))


def key_not_found() -> KmsError:
    return KmsError("Forbidden.KeyNotFound", "The specified Key is not found.")


def bad_material() -> KmsError:
    """The one answer to everything that can be wrong with wrapped key material (RELIABILITY O1: no oracle)."""
    return KmsError("InvalidKeyMaterial", "The key material is not valid.")


def invalid_import_token() -> KmsError:
    return KmsError("InvalidImportToken", "The import token is not valid.")


def forked() -> SetupError:
    return SetupError("this engine was opened before the process forked; open it again in the child")


def api_not_found() -> KmsError:
    return KmsError("InvalidApi.NotFound", "The specified api is not found, please check your url and method.")


def internal_failure() -> KmsError:
    """What is said of a fault of ours; the log says more, without its text (logs.py)."""
    return KmsError("InternalFailure", "The request failed because of an internal error; its RequestId is in the log.")


def undecryptable() -> KmsError:
    """The one answer to every decrypt failure: wrong context, tampering, wrong key, malformed (RELIABILITY O4: no oracle)."""
    return invalid("CiphertextBlob")
