"""Which public key made an ECDSA signature (SEC 1 section 4.1.6). All in plain Python integers: everything here is public.

Needed because a token does not tell the public key of a private key that it unwrapped.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from kmscore.custody.public import CURVES as CURVES_OF_SPECS
from kmscore.domain.specs import SPECS, KeySpec

Point = tuple[int, int] | None
"""Affine; None is the point at infinity."""


@dataclass(frozen=True, slots=True)
class Curve:
    """y² = x³ + ax + b modulo the prime p, with a base point (x, y) of prime order n and cofactor 1. p is 3 modulo 4."""

    p: int
    a: int
    b: int
    n: int
    x: int
    y: int

    def add(self, one: Point, two: Point) -> Point:
        if one is None or two is None:
            return one or two
        (x1, y1), (x2, y2) = one, two
        if x1 == x2 and (y1 + y2) % self.p == 0:
            return None
        slope = (3 * x1 * x1 + self.a) * pow(2 * y1, -1, self.p) if one == two else (y2 - y1) * pow(x2 - x1, -1, self.p)
        x3 = (slope * slope - x1 - x2) % self.p
        return x3, (slope * (x1 - x3) - y1) % self.p

    def times(self, factor: int, point: Point) -> Point:
        result: Point = None
        while factor:
            if factor & 1:
                result = self.add(result, point)
            point, factor = self.add(point, point), factor >> 1
        return result

    def signers(self, digest: bytes, r: int, s: int) -> set[tuple[int, int]]:
        """Every public key under which (r, s) is a signature of `digest`: at most four."""
        if not (0 < r < self.n and 0 < s < self.n):
            return set()
        z = int.from_bytes(digest) >> max(0, 8 * len(digest) - self.n.bit_length())
        found = set()
        for x in range(r, self.p, self.n):
            square = (x**3 + self.a * x + self.b) % self.p
            y = pow(square, (self.p + 1) // 4, self.p)
            if y * y % self.p != square:
                continue
            for point in ((x, y), (x, self.p - y)):
                # Q = (sR - zG) / r
                scaled = self.add(self.times(s, point), self.times(-z % self.n, (self.x, self.y)))
                if (signer := self.times(pow(r, -1, self.n), scaled)) is not None:
                    found.add(signer)
        return found


def _curve(spec: KeySpec, p: int, a: int) -> Curve:
    """The order is told by `cryptography`, the base point is the public key of 1, and b is what puts it on the curve."""
    curve = CURVES_OF_SPECS[spec]
    base = ec.derive_private_key(1, curve).public_key().public_numbers()
    return Curve(p, a, (base.y**2 - base.x**3 - a * base.x) % p, curve.group_order, base.x, base.y)


# SEC 2 version 2.0, sections 2.4.1, 2.4.2, 2.5.1 and 2.6.1.
_FIELDS: dict[KeySpec, tuple[int, int]] = {
    KeySpec.EC_P256: (2**256 - 2**224 + 2**192 + 2**96 - 1, -3),
    KeySpec.EC_P256K: (2**256 - 2**32 - 977, 0),
    KeySpec.EC_P384: (2**384 - 2**128 - 2**96 + 2**32 - 1, -3),
    KeySpec.EC_P521: (2**521 - 1, -3),
}
CURVES: dict[KeySpec, Curve] = {spec: _curve(spec, p, a) for spec, (p, a) in _FIELDS.items()}


def recover(spec: KeySpec, digest: bytes, signature: bytes) -> list[bytes]:
    """The public keys, as uncompressed points, under which r || s is a signature of `digest`: two as a rule, at most four."""
    half = len(signature) // 2
    size = SPECS[spec].bytes
    signers = CURVES[spec].signers(digest, int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
    return [b"\4" + x.to_bytes(size) + y.to_bytes(size) for x, y in signers]
