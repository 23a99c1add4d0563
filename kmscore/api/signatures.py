"""Who signed a request, and whether they did: RPC V1, ACS3, ACS4 (WIRE sections 4 and 5). Time and nonces are looked at afterwards."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from kmscore import signing
from kmscore.api.nonces import WINDOW_SECONDS
from kmscore.api.request import Request
from kmscore.clock import wall_seconds
from kmscore.errors import KmsError

PRODUCT = "kms"  # in an ACS4 credential, in any case
HIDDEN = "***"  # in the place of what must not be said back

_AUTHORIZATION = re.compile(
    rf"({signing.ACS3}|{signing.ACS4}) Credential=([^,\s]+), ?SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{{64}})"
)
_SCOPE = re.compile(rf"([^/]+)/([0-9]{{8}})/([A-Za-z0-9-]+)/([A-Za-z]+)/{signing.ACS4_ENDING}", re.ASCII)
_STAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)
_MUST_SIGN = frozenset({"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-version"})
_NONCE = "x-acs-signature-nonce"


@dataclass(frozen=True, slots=True)
class Claim:
    """A request says that the owner of `access_key_id` signed it at `stamp`. `by_header`: ACS3 or ACS4, else V1.

    `nonce` is unique among the requests of an access key: the one it was sent with, else its signature.
    """

    access_key_id: str
    by_header: bool
    stamp: str
    nonce: str
    verify: Callable[[str, Collection[str]], None]
    """Of the secret, and the names of parameters that are not said back. Raises SignatureDoesNotMatch."""


def claim_of(request: Request) -> Claim:
    """Raises KmsError IncompleteSignature when a request is not signed, half signed or signed twice; UnsupportedOperation for STS."""
    for name in ("x-acs-security-token", "x-acs-bearer-token"):
        if request.headers.get(name):
            raise temporary_credentials()
    if request.params.get("SecurityToken"):
        raise temporary_credentials()
    if not request.authorization:
        return _v1(request)
    if "Signature" in request.params:
        raise incomplete("it is signed in two ways")
    return _acs(request)


def check_time(stamp: str, now: float | None = None) -> None:
    """Raises InvalidTimeStamp.Format, or .Expired for a stamp more than 15 minutes off, or from before the machine was started."""
    if now is None:
        now = wall_seconds()
    try:
        if not _STAMP.fullmatch(stamp):
            raise ValueError
        at = datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        raise KmsError("InvalidTimeStamp.Format", "The time stamp is not of the form YYYY-MM-DDThh:mm:ssZ.") from None
    if abs(at - now) > WINDOW_SECONDS or at < now - time.clock_gettime(time.CLOCK_BOOTTIME):
        clock = datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        raise KmsError(
            "InvalidTimeStamp.Expired",
            f"The time stamp {stamp} is more than 15 minutes from the service's clock, {clock}, or from before its machine was started.",
        )


# --- RPC V1 ------------------------------------------------------------------------------------------------------------------------


def _v1(request: Request) -> Claim:
    params = request.params
    signature = params.get("Signature", "")
    for name in ("AccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "Timestamp"):
        if not params.get(name):
            raise incomplete(f"{name} is missing")
    if params["SignatureMethod"].upper() != signing.V1 or params["SignatureVersion"] != "1.0" or params.get("SignatureType"):
        raise KmsError("InvalidSignatureMethod", "The signature is not HMAC-SHA1 of version 1.0.")
    signed = {name: value for name, value in params.items() if name != "Signature"}

    def verify(secret: str, hidden: Collection[str]) -> None:
        orders = [None] if all(name.isascii() for name in signed) else [None, signing.utf16_order]
        for order in orders:
            expected = signing.v1_signature(secret, signing.v1_string_to_sign(request.method, signed, order))
            if hmac.compare_digest(expected.encode(), signature.encode()):
                return
        shown = {name: HIDDEN if _hidden(name, hidden) else value for name, value in signed.items()}
        raise mismatch(signing.v1_string_to_sign(request.method, shown))

    return Claim(params["AccessKeyId"], False, params["Timestamp"], params.get("SignatureNonce") or signature, verify)


def _hidden(name: str, hidden: Collection[str]) -> bool:
    """Also under a name that is written wrong: a request that is refused is often wrong in more than one way."""
    head = name.partition(".")[0].strip().casefold()
    return any(head == each.casefold() for each in hidden)


# --- ACS3, ACS4 --------------------------------------------------------------------------------------------------------------------


def _acs(request: Request) -> Claim:
    match = _AUTHORIZATION.fullmatch(request.authorization)
    if match is None:
        raise incomplete("the Authorization header is not of a form that is known")
    algorithm, credential, listed, signature = match.groups()
    headers = request.headers
    names = _signed_names(listed)
    if _NONCE in headers and _NONCE not in names:
        raise incomplete(f"{_NONCE} must be signed")
    absent = [name for name in names if name not in headers]
    if absent:
        raise incomplete(f"{', '.join(absent)} is signed and not there")
    access_key_id, key_of = _acs_key(algorithm, credential, headers["x-acs-date"])

    def verify(secret: str, hidden: Collection[str]) -> None:
        orders = [None] if all(name.isascii() for name in request.query) else [None, signing.utf16_order]
        for order in orders:
            query = signing.canonical_query(request.query, order)
            signed = [(name, headers[name]) for name in names]
            string = signing.acs_string_to_sign(
                algorithm, signing.canonical_request(request.method, query, signed, headers["x-acs-content-sha256"])
            )
            fits = hmac.compare_digest(signing.acs_signature(key_of(secret), string), signature)
            if fits and hmac.compare_digest(headers["x-acs-content-sha256"].encode(), request.body_sha256.encode()):
                return
        raise mismatch(string)

    return Claim(access_key_id, True, headers["x-acs-date"], headers.get(_NONCE) or signature, verify)


@lru_cache(maxsize=256)
def _signed_names(listed: str) -> tuple[str, ...]:
    """Clients sign the same few headers each time."""
    names = tuple(listed.split(";"))
    if names != tuple(sorted(set(names))):
        raise incomplete("SignedHeaders are not in order")
    unsigned = sorted(_MUST_SIGN - set(names))
    if unsigned:
        raise incomplete(f"{', '.join(unsigned)} must be signed")
    return names


def _acs_key(algorithm: str, credential: str, stamp: str) -> tuple[str, Callable[[str], bytes]]:
    """The access key of a credential, and what makes its signing key of its secret."""
    if algorithm == signing.ACS3:
        return credential, str.encode
    scope = _SCOPE.fullmatch(credential)
    if scope is None:
        raise incomplete("the Credential is not of a form that is known")
    access_key_id, date, region, product = scope.groups()
    if date != stamp[:10].replace("-", "") or product.lower() != PRODUCT:
        raise incomplete("the Credential is of another day or service")
    return access_key_id, lambda secret: signing.acs4_key(secret, date, region, product)


# --- refusals ----------------------------------------------------------------------------------------------------------------------


def incomplete(why: str) -> KmsError:
    return KmsError("IncompleteSignature", f"The request is not signed as it must be: {why}.")


def mismatch(string_to_sign: str) -> KmsError:
    """The old SDK takes this message apart at its colon, and compares the rest with what it signed."""
    return KmsError(
        "SignatureDoesNotMatch", f"Specified signature is not matched with our calculation. server string to sign is:{string_to_sign}"
    )


def temporary_credentials() -> KmsError:
    return KmsError("UnsupportedOperation", "Temporary credentials (STS, bearer tokens) are not offered; sign with an access key.")
