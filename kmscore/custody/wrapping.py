"""Which usages and wrapping algorithms fit which material, and how the refusal of one reads: the same for every keeper."""

from __future__ import annotations

from collections.abc import Sequence

from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import SPECS, Family, KeySpec, KeyUsage
from kmscore.errors import KmsError, invalid


def serves(spec: KeySpec, usage: KeyUsage) -> bool:
    """Whether keys of `spec` can be for `usage`; pairs that import offers are made of are RSA."""
    return spec in SPECS and (usage in SPECS[spec].usages or (usage is KeyUsage.UNWRAP and SPECS[spec].family is Family.RSA))


def fitting(spec: KeySpec) -> tuple[WrappingAlgorithm, ...]:
    """The algorithms that material of `spec` can come wrapped with: private keys are too long for the one-step ones."""
    if not SPECS[spec].importable:
        return ()
    return tuple(algorithm for algorithm in WrappingAlgorithm if SPECS[spec].family is Family.AES or algorithm.two_step)


def refused(algorithm: WrappingAlgorithm, spec: KeySpec, can: Sequence[WrappingAlgorithm], where: str) -> KmsError:
    """The refusal of `algorithm`, naming those that `where` can do."""
    names = ", ".join(can) or "none"
    return invalid(
        "WrappingAlgorithm", f"{where} cannot unwrap {spec.value} material wrapped with {algorithm.value}; it can with: {names}."
    )
