"""What an import token says, and its bytes inside the seal (docs/FORMAT.md). Pure; the seal is engine/seals.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from kmscore.domain.algorithms import WrappingAlgorithm


@dataclass(frozen=True, slots=True)
class ImportClaims:
    """`offer` is the stream of the wrapping pair, which names the key, too."""

    offer: str
    algorithm: WrappingAlgorithm
    expires_at: datetime

    def pack(self) -> bytes:
        claims = {"offer": self.offer, "algorithm": self.algorithm.value, "expires": int(self.expires_at.timestamp())}
        return json.dumps(claims, separators=(",", ":")).encode()


def unpack_claims(data: bytes) -> ImportClaims:
    """Of bytes that the seal has vouched for."""
    claims = json.loads(data)
    return ImportClaims(str(claims["offer"]), WrappingAlgorithm(claims["algorithm"]), datetime.fromtimestamp(claims["expires"], UTC))
