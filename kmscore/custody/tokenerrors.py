"""python-pkcs11's exceptions as ours, and which of them pass by themselves. The one place where a foreign token error is wrapped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pkcs11 import exceptions as p11

from kmscore.custody._p11 import token_error
from kmscore.errors import TokenError

T = TypeVar("T")

# PKCS#11 v2.40 section 11.1: return values by the exception that python-pkcs11 makes of them. What is not here is CKR_FUNCTION_FAILED.
_RV: dict[type[p11.PKCS11Error], int] = {
    p11.HostMemory: 0x02,  # CKR_HOST_MEMORY
    p11.SlotIDInvalid: 0x03,  # CKR_SLOT_ID_INVALID
    p11.GeneralError: 0x05,  # CKR_GENERAL_ERROR
    p11.FunctionFailed: 0x06,  # CKR_FUNCTION_FAILED
    p11.ArgumentsBad: 0x07,  # CKR_ARGUMENTS_BAD
    p11.AttributeReadOnly: 0x10,  # CKR_ATTRIBUTE_READ_ONLY
    p11.AttributeSensitive: 0x11,  # CKR_ATTRIBUTE_SENSITIVE
    p11.AttributeTypeInvalid: 0x12,  # CKR_ATTRIBUTE_TYPE_INVALID
    p11.AttributeValueInvalid: 0x13,  # CKR_ATTRIBUTE_VALUE_INVALID
    p11.EncryptedDataInvalid: 0x40,  # CKR_ENCRYPTED_DATA_INVALID
    p11.EncryptedDataLenRange: 0x41,  # CKR_ENCRYPTED_DATA_LEN_RANGE
    p11.DeviceError: 0x30,  # CKR_DEVICE_ERROR
    p11.DeviceMemory: 0x31,  # CKR_DEVICE_MEMORY
    p11.DeviceRemoved: 0x32,  # CKR_DEVICE_REMOVED
    p11.FunctionNotSupported: 0x54,  # CKR_FUNCTION_NOT_SUPPORTED
    p11.KeyHandleInvalid: 0x60,  # CKR_KEY_HANDLE_INVALID
    p11.KeySizeRange: 0x62,  # CKR_KEY_SIZE_RANGE
    p11.KeyTypeInconsistent: 0x63,  # CKR_KEY_TYPE_INCONSISTENT
    p11.MechanismInvalid: 0x70,  # CKR_MECHANISM_INVALID
    p11.MechanismParamInvalid: 0x71,  # CKR_MECHANISM_PARAM_INVALID
    p11.ObjectHandleInvalid: 0x82,  # CKR_OBJECT_HANDLE_INVALID
    p11.SessionClosed: 0xB0,  # CKR_SESSION_CLOSED
    p11.SessionCount: 0xB1,  # CKR_SESSION_COUNT
    p11.SessionHandleInvalid: 0xB3,  # CKR_SESSION_HANDLE_INVALID
    p11.SessionReadOnly: 0xB5,  # CKR_SESSION_READ_ONLY
    p11.TemplateIncomplete: 0xD0,  # CKR_TEMPLATE_INCOMPLETE
    p11.TemplateInconsistent: 0xD1,  # CKR_TEMPLATE_INCONSISTENT
    p11.TokenNotPresent: 0xE0,  # CKR_TOKEN_NOT_PRESENT
    p11.TokenNotRecognised: 0xE1,  # CKR_TOKEN_NOT_RECOGNIZED
    p11.TokenWriteProtected: 0xE2,  # CKR_TOKEN_WRITE_PROTECTED
    p11.UnwrappingKeyHandleInvalid: 0xF0,  # CKR_UNWRAPPING_KEY_HANDLE_INVALID
    p11.UserNotLoggedIn: 0x101,  # CKR_USER_NOT_LOGGED_IN
    p11.WrappedKeyInvalid: 0x110,  # CKR_WRAPPED_KEY_INVALID
    p11.WrappedKeyLenRange: 0x112,  # CKR_WRAPPED_KEY_LEN_RANGE
    p11.DomainParamsInvalid: 0x130,  # CKR_DOMAIN_PARAMS_INVALID
}

HANDLE_INVALID = frozenset({0x60, 0x82})  # CKR_KEY_HANDLE_INVALID (NSS), CKR_OBJECT_HANDLE_INVALID
PIN_REFUSED = frozenset({0xA0, 0xA1, 0xA2, 0xA3, 0xA4})  # incorrect, invalid, length, expired, locked

# While another process logs in, SoftHSM's token.object is empty for an instant (RELIABILITY 1.1 fact 6): these pass by themselves.
TRANSIENT = frozenset({0x05, 0xE0, 0xE1, 0x102})  # general error, not present, not recognized, PIN not initialized
# SoftHSM answers these also to wrapped bytes with wrong padding, NSS the first to an attribute that it does not know.
VAGUE = frozenset({0x05, 0x06})  # CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED
RETRY_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


@contextmanager
def calling(function: str) -> Iterator[None]:
    """Turn what python-pkcs11 raises in the block into a TokenError of the C_ function named."""
    try:
        yield
    except p11.PKCS11Error as error:
        rv = _RV.get(type(error))
        if rv is None:
            raise TokenError(0x06, function, type(error).__name__) from error
        raise token_error(rv, function) from error  # what a CK_RV means is said once, in the core (ext/rv.pxi)


def is_trouble(error: TokenError) -> bool:
    """Whether it says that token, session or handle are out of order, so that it says nothing about what was asked for."""
    return error.rv == 0xF0 or (error.code != "InternalFailure" and error.rv not in VAGUE)


def patiently(call: Callable[[], T], *, seconds: float = RETRY_SECONDS) -> T:
    """Call until it does not fail with a TRANSIENT TokenError, for at most `seconds`. Only for calls that change nothing."""
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except TokenError as error:
            if error.rv not in TRANSIENT or time.monotonic() >= deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
