"""The one error type that crosses a room, and the table of its codes.

A code is the wire's own (Alibaba Cloud KMS 2016-01-20); clients match on it, never on the message. Errors carry plain strings and
numbers only, so they pickle, and never a key byte, a plaintext, a PIN or a token.
"""

from __future__ import annotations

# Code -> (HTTP status, may the very same call succeed later?).
CODES: dict[str, tuple[int, bool]] = {
    "AliasAlreadyExists": (400, False),
    "Duplicate.TagKey": (400, False),
    "ExpiredImportToken": (400, False),
    "Forbidden.AliasNotFound": (404, False),
    "Forbidden.DKMSInstanceNotFound": (403, False),
    "Forbidden.KeyNotFound": (404, False),
    "Forbidden.KeyVersionNotFound": (404, False),
    "Forbidden.NoPermission": (403, False),
    "Forbidden.ResourceNotFound": (404, False),
    "InternalFailure": (500, False),
    "InvalidApi.NotFound": (404, False),
    "InvalidImportToken": (400, False),
    "InvalidKeyMaterial": (400, False),
    "InvalidParameter": (400, False),
    "InvalidParameter.TagKey": (400, False),
    "InvalidParameter.TagValue": (400, False),
    "InvalidResourceId.NotFound": (404, False),
    "MissingParameter": (400, False),
    "Rejected.Disabled": (409, False),
    "Rejected.LimitExceeded": (400, False),
    "Rejected.PendingDeletion": (409, False),
    "Rejected.PendingImport": (409, False),
    "Rejected.StateModifiedFailed": (409, False),
    "Rejected.Unavailable": (409, False),
    "Rejected.UnsupportedOperation": (400, False),
    "ServiceUnavailableTemporary": (503, True),
    "Unsupported.Alias": (400, False),
    "Unsupported.Origin": (400, False),
    "Unsupported.ProtectionLevel": (400, False),
    "UnsupportedOperation": (400, False),
}


class KmsError(Exception):
    """What a caller of kmscore sees when a call is refused or fails.

    `code` is the wire's code, `status` its HTTP status, `retryable` whether the same call may succeed later without any change.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.status, self.retryable = CODES[code]

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class TokenError(KmsError):
    """A PKCS#11 call failed. `rv` is the CK_RV, `function` the C_ function; `code` says what it means to the caller."""

    def __init__(self, rv: int, function: str, name: str = "", code: str = "ServiceUnavailableTemporary") -> None:
        Exception.__init__(self, rv, function, name, code)
        self.rv = rv
        self.function = function
        self.name = name or f"CKR 0x{rv:x}"
        self.code = code
        self.message = f"the token refused {function}: {self.name}"
        self.status, self.retryable = CODES[code]


class SetupError(KmsError):
    """The home, the token or the settings are not as they must be; the message says what to do. Nothing was changed."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.code = "InternalFailure"
        self.message = message
        self.status, self.retryable = CODES[self.code]


class Conflict(KmsError):
    """Another writer appended to the same stream first. The engine decides again on the fresh state; callers never see it."""

    def __init__(self, stream: str) -> None:
        Exception.__init__(self, stream)
        self.code = "ServiceUnavailableTemporary"
        self.message = f"{stream} was changed at the same time; try again"
        self.status, self.retryable = CODES[self.code]


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


def undecryptable() -> KmsError:
    """The one answer to every decrypt failure: wrong context, tampering, wrong key, malformed (RELIABILITY O4: no oracle)."""
    return invalid("CiphertextBlob")
