"""What the service's own keys do for an import: seal its token, and digest its check value."""

from __future__ import annotations

from collections.abc import Callable

from kmscore.custody.port import AeadKey, MacKey
from kmscore.domain.envelope import FORMAT_VERSION
from kmscore.domain.importtoken import ImportClaims, unpack_claims
from kmscore.domain.specs import HEADER_BYTES, ContentKind, KeySpec
from kmscore.errors import KmsError, invalid_import_token

_PURPOSE = b"kmscore import token"


class TokenSeal:
    """Import tokens are blobs under the root key: nobody makes, changes or reads one, and it opens for its key only."""

    def __init__(self, root: AeadKey, root_version: bytes) -> None:
        self._root = root
        self._header = bytes((FORMAT_VERSION, root.suite, ContentKind.IMPORT_TOKEN)) + root_version

    def seal(self, key_id: str, claims: ImportClaims) -> bytes:
        return self._root.encrypt(self._header, self._aad(key_id), claims.pack())

    def open(self, key_id: str, token: bytes) -> ImportClaims:
        """Raises KmsError InvalidImportToken for whatever is not a token for this key."""
        if token[:HEADER_BYTES] != self._header:
            raise invalid_import_token()
        try:
            return unpack_claims(self._root.decrypt(HEADER_BYTES, self._aad(key_id), token))
        except KmsError as error:
            if error.code != "InvalidParameter":
                raise
            raise invalid_import_token() from None

    def _aad(self, key_id: str) -> bytes:
        return self._header + _PURPOSE + key_id.encode()


class Digests:
    """Keyed digests of check values: they tell whether material is the same as before, to nobody who has not the key."""

    def __init__(self, load: Callable[[], MacKey]) -> None:
        """`load` answers the MAC key; asked once, at the first import."""
        self._load = load
        self._key: MacKey | None = None

    def of(self, key_id: str, spec: KeySpec, check_value: bytes) -> str:
        """64 hexadecimal digits. The same material in two keys has two digests."""
        key = self._key = self._key or self._load()
        parts = (b"kmscore import digest", key_id.encode(), spec.value.encode(), check_value)
        return key.mac(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hex()
