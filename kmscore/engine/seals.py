"""What the service's own keys do: seal import tokens and the secrets of access keys, digest the check values of imported material."""

from __future__ import annotations

from collections.abc import Callable

from kmscore.custody.port import AeadKey, MacKey
from kmscore.domain.envelope import FORMAT_VERSION
from kmscore.domain.importtoken import ImportClaims, unpack_claims
from kmscore.domain.specs import HEADER_BYTES, ContentKind, KeySpec
from kmscore.errors import KmsError, invalid_import_token


class Seal:
    """Blobs under the root key of one kind: nobody makes, changes or reads one, and it opens for the name only that it was made for."""

    def __init__(self, root: AeadKey, root_version: bytes, kind: ContentKind, purpose: bytes) -> None:
        self._root = root
        self._purpose = purpose
        self.header = bytes((FORMAT_VERSION, root.suite, kind)) + root_version

    def close(self, name: str, content: bytes) -> bytes:
        return self._root.encrypt(self.header, self._aad(name), content)

    def open(self, name: str, blob: bytes) -> bytes:
        """Raises KmsError InvalidParameter for whatever is not one for this name."""
        return self._root.decrypt(HEADER_BYTES, self._aad(name), blob)

    def _aad(self, name: str) -> bytes:
        return self.header + self._purpose + name.encode()


class TokenSeal:
    """Import tokens: each opens for its key only."""

    def __init__(self, root: AeadKey, root_version: bytes) -> None:
        self._seal = Seal(root, root_version, ContentKind.IMPORT_TOKEN, b"kmscore import token")

    def seal(self, key_id: str, claims: ImportClaims) -> bytes:
        return self._seal.close(key_id, claims.pack())

    def open(self, key_id: str, token: bytes) -> ImportClaims:
        """Raises KmsError InvalidImportToken for whatever is not a token for this key."""
        if token[:HEADER_BYTES] != self._seal.header:
            raise invalid_import_token()
        try:
            return unpack_claims(self._seal.open(key_id, token))
        except KmsError as error:
            if error.code != "InvalidParameter":
                raise
            raise invalid_import_token() from None


class SecretSeal:
    """Secrets of access keys at rest: each opens for its access key only."""

    def __init__(self, root: AeadKey, root_version: bytes) -> None:
        self._seal = Seal(root, root_version, ContentKind.ACCESS_SECRET, b"kmscore access secret")

    def seal(self, access_key_id: str, secret: str) -> bytes:
        return self._seal.close(access_key_id, secret.encode())

    def open(self, access_key_id: str, sealed: bytes) -> str:
        return self._seal.open(access_key_id, sealed).decode()


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
