"""A client of the wire: signed requests to a running service (ACS3), and an engine's methods for data keys on top of them.

Knows the API by its form only: what an operation takes and answers is for the caller and the service. Nothing is sent a second time, for
a repeated CreateKey makes a second key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import ipaddress
import json
import re
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kmscore import __version__, signing
from kmscore.clock import wall_seconds
from kmscore.domain.specs import ContentKind
from kmscore.errors import CODES, KmsError, SetupError, invalid, undecryptable
from kmscore.results import DataKey, Decrypted

API_VERSION = "2016-01-20"
FORM = "application/x-www-form-urlencoded"
MAX_ANSWER_BYTES = 16 << 20  # far above what 1 MiB of request can ask for
TIMEOUT_SECONDS = 60.0  # of each wait for the network: a 4096-bit pair takes a token seconds
DEFAULT_REGION = "cn-local"

_ENDPOINT = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?", re.ASCII | re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_ACCESS_KEY_ID = re.compile(r"[!-+\--~]+", re.ASCII)  # what a header holds, without the comma that ends it there
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}", re.ASCII)


class RemoteError(KmsError):
    """What a service refused with, in its own words. `code` may be one that errors.CODES does not hold, from another or a newer service.

    `status` is that of the HTTP answer. `retryable` is what CODES says; of an unknown code, whether the status is 429 or 503.
    """

    def __init__(self, code: str, message: str, status: int, request_id: str = "") -> None:
        Exception.__init__(self, code, message, status, request_id)
        self.code = code
        self.message = message
        self.status = status
        self.retryable = CODES[code].retryable if code in CODES else status in (429, 503)
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service listens. `host` is without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As the Host header has it: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_private(self) -> bool:
        """Nobody on the way can read what is sent: it is encrypted, or does not leave this machine."""
        if self.scheme == "https" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_endpoint(text: str) -> Endpoint:
    """Of http://HOST, https://HOST, each with :PORT or without. Raises SetupError for anything else."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3] or 1) not in range(1, 65536):
        given = f", not {text!r}" if "@" not in text else ", without a user or password"
        raise SetupError(f"an endpoint is https://HOST:PORT or http://HOST:PORT{given}")
    scheme = match[1].lower()
    return Endpoint(scheme, match[2].strip("[]").lower(), int(match[3] or _PORTS[scheme]))


_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def _is_plain(error: Exception) -> bool:
    return isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


class Client:
    """Calls the operations of a service. Holds no connection, so threads may share it; proxies are not heeded, redirects not followed."""

    def __init__(
        self,
        endpoint: str,
        access_key_id: str,
        access_key_secret: str,
        region: str = "",
        ca_file: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """`ca_file`: certificates in PEM to trust instead of the system's. `timeout`: seconds of each wait. Raises SetupError."""
        if not _ACCESS_KEY_ID.fullmatch(access_key_id) or not access_key_secret:
            raise SetupError("an access key id is printable ASCII without spaces and commas, and its secret is not empty")
        self.endpoint = parse_endpoint(endpoint)
        self.region = region or DEFAULT_REGION
        self._access_key_id = access_key_id
        self._secret = access_key_secret.encode()
        self._timeout = timeout
        self._tls = _trust(ca_file) if self.endpoint.scheme == "https" else None

    def call(self, action: str, params: Mapping[str, str]) -> dict[str, Any]:
        """What the service answers. The parameters go in the body, where no proxy logs them.

        Raises RemoteError for what the service refuses, ServiceUnavailableTemporary when it cannot be reached or gives no answer,
        InternalFailure for an answer that is none of such a service, InvalidParameter for text that UTF-8 cannot carry, SetupError when
        its certificate is not to be trusted.
        """
        for name, value in params.items():
            if not _is_utf8(name + value):
                raise invalid(name.encode(errors="replace").decode(), "It holds a character that UTF-8 cannot carry.")
        body = signing.canonical_query(params).encode()
        status, kind, data = self._exchange(body, self._headers(action, body))
        return self._understand(status, kind, data)

    def _headers(self, action: str, body: bytes) -> dict[str, str]:
        payload_hash = hashlib.sha256(body).hexdigest()
        signed = {
            "content-type": FORM,
            "host": self.endpoint.authority,
            "x-acs-action": action,
            "x-acs-content-sha256": payload_hash,
            "x-acs-date": datetime.fromtimestamp(wall_seconds(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "x-acs-signature-nonce": uuid.uuid4().hex,
            "x-acs-version": API_VERSION,
        }
        request = signing.canonical_request("POST", "", sorted(signed.items()), payload_hash)
        signature = signing.acs_signature(self._secret, signing.acs_string_to_sign(signing.ACS3, request))
        names = signing.signed_names(sorted(signed))
        return {
            **signed,
            "authorization": f"{signing.ACS3} Credential={self._access_key_id},SignedHeaders={names},Signature={signature}",
            "accept": "application/json",
            "user-agent": f"kmscore/{__version__}",
        }

    # --- the network ---------------------------------------------------------------------------------------------------------------

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes]:
        """(status, content type, body) of the answer; of a body that is too large, one byte too many."""
        connection = self._connection()
        try:
            try:
                connection.connect()
            except ssl.SSLCertVerificationError as error:
                raise SetupError(self._untrusted(error)) from None
            except (OSError, UnicodeError) as error:  # the latter of a host that no name server can be asked for
                plain = "; it does not speak TLS: use http://, or start it with kms serve --tls" * _is_plain(error)
                raise KmsError("ServiceUnavailableTemporary", f"cannot reach {self.endpoint}: {_reason(error)}{plain}") from None
            try:
                connection.request("POST", "/", body, headers)
                answer = connection.getresponse()
                data = answer.read(MAX_ANSWER_BYTES + 1)
                if len(data) <= MAX_ANSWER_BYTES and answer.length:
                    raise http.client.IncompleteRead(data, answer.length)
            except (OSError, http.client.HTTPException) as error:
                tls = " (does it speak TLS? then use https://)" * (self._tls is None and isinstance(error, ConnectionError))
                raise KmsError(
                    "ServiceUnavailableTemporary",
                    f"{self.endpoint} gave no answer: {_reason(error)}; the call may have been carried out, or not{tls}",
                ) from None
            return answer.status, answer.getheader("content-type", ""), data
        finally:
            connection.close()

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> str:
        if error.verify_code in _WRONG_NAME:
            return f"the certificate of {self.endpoint} is for another name: use a name that it bears, or a certificate for this one"
        return (
            f"the certificate of {self.endpoint} is not to be trusted: {error.verify_message}; give the certificate of its authority by "
            "--ca-file, KMS_CA_FILE or ca_file of a profile (kms serve --tls has it in $KMS_HOME/tls/ca.pem)"
        )

    def _connection(self) -> http.client.HTTPConnection:
        place = self.endpoint
        if self._tls is not None:
            return http.client.HTTPSConnection(place.host, place.port, timeout=self._timeout, context=self._tls)
        return http.client.HTTPConnection(place.host, place.port, timeout=self._timeout)

    # --- the answer ----------------------------------------------------------------------------------------------------------------

    def _understand(self, status: int, kind: str, data: bytes) -> dict[str, Any]:
        if len(data) > MAX_ANSWER_BYTES:
            raise self._foreign(status, f"it is larger than {MAX_ANSWER_BYTES} bytes")
        try:
            answer = json.loads(data.decode())
        except (ValueError, RecursionError):
            raise self._foreign(status, f"it is not JSON but {_printable(kind) or 'of no type'}") from None
        if not isinstance(answer, dict):
            raise self._foreign(status, "it is not a JSON object")
        if status == 200:
            return answer
        code, message, request_id = (answer.get(name, "") for name in ("Code", "Message", "RequestId"))
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise self._foreign(status, "it has no Code")
        raise RemoteError(code, _printable(str(message)), status, _printable(str(request_id)))

    def _foreign(self, status: int, why: str) -> KmsError:
        """Something else answered: a proxy, perhaps, that does not reach the service now, or another program."""
        code = "ServiceUnavailableTemporary" if status in (502, 503, 504) else "InternalFailure"
        return KmsError(code, f"the answer of {self.endpoint} (HTTP {status}) is not one of a key management service: {why}")


class RemoteKms:
    """An engine's methods for data keys, over a client: what kmscore/files.py needs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def generate_data_key(self, key_id: str, *, number_of_bytes: int, encryption_context: Mapping[str, str]) -> DataKey:
        """Raises KmsError: what Client.call raises, InternalFailure for an answer without such a key."""
        answer = self._client.call(
            "GenerateDataKey", {"KeyId": key_id, "NumberOfBytes": str(number_of_bytes), "EncryptionContext": _context(encryption_context)}
        )
        key, blob = _bytes(answer, "Plaintext"), _bytes(answer, "CiphertextBlob")
        if key is None or len(key) != number_of_bytes or not blob:
            raise KmsError("InternalFailure", f"{self._client.endpoint} answered no data key of {number_of_bytes} bytes")
        return DataKey(blob, _text(answer, "KeyId"), _text(answer, "KeyVersionId"), key)

    def decrypt(self, ciphertext_blob: bytes, encryption_context: Mapping[str, str]) -> Decrypted:
        """Of a data key. Raises KmsError: what Client.call raises, InvalidParameter when the blob held something that is not bytes."""
        answer = self._client.call(
            "Decrypt",
            {"CiphertextBlob": base64.b64encode(ciphertext_blob).decode(), "EncryptionContext": _context(encryption_context)},
        )
        plaintext = _bytes(answer, "Plaintext")
        if plaintext is None:
            raise undecryptable()
        return Decrypted(plaintext, _text(answer, "KeyId"), _text(answer, "KeyVersionId"), ContentKind.RAW)


def _trust(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # an SSLError is one
        reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise SetupError(f"cannot use the CA file {ca_file}: {reason}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return _printable(getattr(error, "strerror", None) or str(error)) or type(error).__name__


def _printable(text: str) -> str:
    """On one line, and without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _context(context: Mapping[str, str]) -> str:
    return json.dumps(dict(context), ensure_ascii=False)


def _text(answer: Mapping[str, Any], name: str) -> str:
    return str(answer.get(name, ""))


def _bytes(answer: Mapping[str, Any], name: str) -> bytes | None:
    """None for what is not base64."""
    try:
        return base64.b64decode(answer.get(name) or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return None
