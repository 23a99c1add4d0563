"""The keepers that the contract suites run on, each with a way to open the same custody once more, as another process would."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from custody_helpers import MemoryTable, new_nss, new_ref, open_keeper

from kmscore.custody.fake import FakeKeeper, FakeToken
from kmscore.custody.port import Facts, Keeper, MaterialRef
from kmscore.custody.software import SoftwareKeeper, load_or_create_root_file
from kmscore.domain.specs import SPECS, KeySpec, KeyUsage
from kmscore.errors import KmsError


@dataclass
class Bench:
    kind: str
    keeper: Keeper
    again: Callable[[], Keeper]

    def ref(self, spec: KeySpec = KeySpec.AES_256, usage: KeyUsage | None = None, *, imported: bool = False) -> MaterialRef:
        """A fresh one. Skips the test where this custody says that it cannot hold such keys."""
        usage = usage or SPECS[spec].usages[0]
        try:
            suite = self.keeper.suite_for(spec, usage)
        except KmsError as error:
            assert (error.code, "KeySpec" in error.message) == ("InvalidParameter", True)
            pytest.skip(error.message)
        return new_ref(suite, spec, usage, imported=imported)

    def new(self, spec: KeySpec = KeySpec.AES_256, usage: KeyUsage | None = None) -> MaterialRef:
        """Generated material; the reference has its public key."""
        ref = self.ref(spec, usage)
        return with_public(ref, self.keeper.generate(ref))


def with_public(ref: MaterialRef, facts: Facts) -> MaterialRef:
    """The reference as the engine makes it once the facts are recorded."""
    return replace(ref, public_key=bytes.fromhex(str(facts.get("public_key", ""))))


def code(call: Callable[[], object]) -> str:
    with pytest.raises(KmsError) as caught:
        call()
    return caught.value.code


def _fake(home: Path, stack: ExitStack) -> tuple[Keeper, Callable[[], Keeper]]:
    token = FakeToken()
    return FakeKeeper(token), lambda: FakeKeeper(token)


def _token(home: Path, stack: ExitStack, **settings: object) -> tuple[Keeper, Callable[[], Keeper]]:
    def open_one() -> Keeper:
        keeper = open_keeper(home, **settings)  # type: ignore[arg-type]
        stack.callback(keeper.close)
        return keeper

    return open_one(), open_one


def _nss(home: Path, stack: ExitStack) -> tuple[Keeper, Callable[[], Keeper]]:
    return _token(home, stack, **new_nss(home / "nss"))


def _software(home: Path, stack: ExitStack) -> tuple[Keeper, Callable[[], Keeper]]:
    root, table = load_or_create_root_file(home / "root.key", may_create=True), MemoryTable()
    return SoftwareKeeper(table, root), lambda: SoftwareKeeper(table, load_or_create_root_file(home / "root.key", may_create=False))


def _software_in_token(home: Path, stack: ExitStack) -> tuple[Keeper, Callable[[], Keeper]]:
    token, table = _token(home, stack)[0], MemoryTable()
    ref = new_ref()
    token.generate(ref)

    def open_one() -> Keeper:
        return SoftwareKeeper(table, token.load(ref), ref.material_id)  # type: ignore[arg-type]

    return open_one(), open_one


KINDS = {"fake": _fake, "hsm": _token, "nss": _nss, "software": _software, "software-in-token": _software_in_token}
