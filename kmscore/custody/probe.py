"""What `kms doctor` asks of the custody rooms: what is as it must be, and what to do where it is not. Changes nothing, raises nothing.

The parts that need no open token work on a home that does not open, which is when a doctor is called.
"""

from __future__ import annotations

import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pkcs11 import Mechanism

from kmscore.config import Settings
from kmscore.custody.fragments import TOKEN_OBJECT, find_fragments, find_nameless
from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.objectfile import read_token
from kmscore.custody.softhsm import TokenHome
from kmscore.custody.templates import mechanism_name
from kmscore.disk import FREE_SPACE_FLOOR, free_bytes
from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import SPECS, KeySpec
from kmscore.errors import KmsError
from kmscore.results import Finding

# Enough for the Secrets of a few thousand software keys; the usual limit is 8 MiB. Bytes.
_ENOUGH_LOCKED = 1 << 20
_WARN_FREE = 256 << 20  # bytes

# Mechanism -> what is lost without it. The first two are needed for any AES key of level HSM.
_WANTED: dict[Mechanism, str] = {
    Mechanism.AES_KEY_GEN: "AES keys of level HSM",
    Mechanism.AES_GCM: "AES keys of level HSM",
    Mechanism.AES_ECB_ENCRYPT_DATA: "suite 1 (nonces that cannot run out) for 256-bit keys; they get suite 2 with its counted uses, and "
    "cannot be imported",
    Mechanism.RSA_PKCS_KEY_PAIR_GEN: "RSA keys, and every import at level HSM",
    Mechanism.RSA_PKCS: "RSA_PKCS1_SHA_256, and RSA keys that sign at all; imports",
    Mechanism.RSA_PKCS_PSS: "RSA_PSS_SHA_256, and RSA keys that sign at all",
    Mechanism.RSA_PKCS_OAEP: "imports at level HSM",
    Mechanism.EC_KEY_PAIR_GEN: "EC keys",
    Mechanism.ECDSA: "EC keys",
    Mechanism.GENERIC_SECRET_KEY_GEN: "MAC keys",
    Mechanism.SHA256_HMAC: "HMAC_256 keys",
    Mechanism.SHA384_HMAC: "HMAC_384 keys",
    Mechanism.SHA512_HMAC: "HMAC_512 keys",
}
_ESSENTIAL = frozenset({Mechanism.AES_KEY_GEN, Mechanism.AES_GCM})


def probe(settings: Settings, keeper: HsmKeeper | None) -> list[Finding]:
    """Everything that can be said; `keeper` is None where there is no token or it did not open."""
    parts: list[Callable[[], Iterator[Finding]]] = [probe_process, lambda: probe_files(settings)]
    if settings.has_token:
        parts.append(lambda: probe_own_token(settings))
    if keeper is not None:
        parts.append(lambda: probe_token(keeper))
    findings: list[Finding] = []
    for part in parts:
        try:
            findings += part()
        except (OSError, KmsError) as error:
            findings.append(Finding("fail", f"cannot look: {error}"))
    return findings


def probe_process() -> Iterator[Finding]:
    """Limits of this process and of the host that decide where a key byte may end up (RELIABILITY H1, H2, H6)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    locked = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    swap = _swap_devices()
    if soft != resource.RLIM_INFINITY and soft < _ENOUGH_LOCKED:
        level: Literal["warn", "fail"] = "fail" if swap else "warn"
        yield Finding(level, f"only {locked} of memory can be locked", "raise the limit: ulimit -l, or LimitMEMLOCK= in systemd")
    else:
        yield Finding("ok", f"{locked} of memory can be locked")
    if swap:
        yield Finding("warn", f"swap is on ({', '.join(swap)})", "turn it off or encrypt it: what cannot be locked may be written there")
    else:
        yield Finding("ok", "swap is off")
    core, _ = resource.getrlimit(resource.RLIMIT_CORE)
    if core:
        yield Finding("warn", "core dumps are on in this process", "ulimit -c 0; kms serve turns them off for itself")
    else:
        yield Finding("ok", "core dumps are off")


def probe_files(settings: Settings) -> Iterator[Finding]:
    """Modes of the files that hold secrets, and room on the disk."""
    home = settings.home
    if not home.exists():
        yield Finding("warn", f"there is no home at {home} yet", "it is made at the first start")
        return
    secret = [home, settings.pin_file, home / "so-pin", home / "tokens", home / "guard", home / "root.key", home / "credentials"]
    wide = [path for path in secret if path.exists() and path.stat().st_mode & 0o077]
    for path in wide:
        mode = stat.S_IMODE(path.stat().st_mode)
        yield Finding("fail", f"{path} has mode {mode:04o}: others can reach it", f"chmod go-rwx '{path}'")
    if not wide:
        yield Finding("ok", "the files that hold secrets are the owner's alone")
    free = free_bytes(home)
    text = f"{free >> 20} MiB are free on the file system of {home}"
    if free < FREE_SPACE_FLOOR:
        yield Finding("fail", text, f"free some: below {FREE_SPACE_FLOOR >> 20} MiB nothing starts, a login would destroy the token")
    elif free < _WARN_FREE:
        yield Finding("warn", text, "free some before it gets short")
    else:
        yield Finding("ok", text)


def probe_own_token(settings: Settings) -> Iterator[Finding]:
    """The files of the home's own SoftHSM token, the guard's copy, and what killed calls left; nothing for another token."""
    if not settings.owns_token:
        yield Finding("ok", f"the token {settings.token_label!r} is not kmscore's own: its backup and durability are its owner's task")
        return
    place = TokenHome.of(settings)
    directory = place.guard.token_directory()
    if directory is None:
        yield Finding("warn", f"there is no token under {place.tokens}", "it is made at the first start, or restore it from backup")
        return
    live, saved = read_token(directory / TOKEN_OBJECT), place.guard.saved_token()
    if live is None and saved is None:
        yield Finding("fail", f"{directory / TOKEN_OBJECT} and its copy are damaged", "restore the token from backup")
    elif live is None:
        yield Finding("warn", f"{directory / TOKEN_OBJECT} is damaged, its copy is whole", "the next start restores it")
    elif saved is None:
        yield Finding("warn", f"the copy of token.object at {place.guard.saved} is missing", "the next start saves it")
    else:
        yield Finding("ok", "token.object and its saved copy are whole")
    fragments = find_fragments(directory)
    if fragments:
        yield Finding("warn", f"{len(fragments)} fragments of killed calls lie in the token", "kms reconcile clears them away")
    if nameless := [path for path in find_nameless(directory) if path not in fragments]:
        yield Finding("warn", f"{len(nameless)} objects without id and label lie in the token, not made by kmscore", "find out whose")


def probe_token(keeper: HsmKeeper) -> Iterator[Finding]:
    """What the module and the token say of themselves, and which keys they can hold."""
    module = keeper.module_facts
    yield Finding("ok", f"module {module['path']}: {module['description']} {module['library_version']} by {module['manufacturer']}")
    facts = keeper.token_facts
    yield Finding("ok", f"token {facts['label']!r}, serial {facts['serial']}, {facts['model']} by {facts['manufacturer']}")
    if "softhsm" in facts["model"].lower():
        yield Finding("ok", "it is a software token: what it says of a key is as trustworthy as the modes of its files")
    yield Finding("ok", f"its mechanisms: {', '.join(sorted(mechanism_name(number) for number in keeper.mechanisms))}")
    broken = keeper.broken_rules()
    for rule in broken:
        yield Finding("warn", f"it {rule}", "guard its PIN like the keys themselves, or use a token that keeps this rule")
    if not broken:
        yield Finding("ok", "it keeps to itself what is not extractable, and each key to its role, as far as that can be tried")
    for mechanism, purpose in _WANTED.items():
        if mechanism in keeper.mechanisms:
            continue
        level: Literal["warn", "fail"] = "fail" if mechanism in _ESSENTIAL else "warn"
        yield Finding(level, f"the token lacks {mechanism_name(mechanism)}, needed for {purpose}", "use a token that has it")
    for spec, spec_facts in SPECS.items():
        for usage in spec_facts.usages:
            try:
                suite = keeper.suite_for(spec, usage)
                yield Finding("ok", f"{spec.value}: " + (f"suite {suite.value}" if suite else usage.value))
            except KmsError:
                yield Finding("warn", f"{spec.value}: the token cannot hold it for {usage.value}")
    for spec, what in ((KeySpec.AES_256, "AES keys"), (KeySpec.RSA_2048, "RSA keys"), (KeySpec.EC_P256, "EC keys")):
        can = [algorithm.value for algorithm in WrappingAlgorithm if _imports(keeper, algorithm, spec)]
        yield Finding("ok" if can else "warn", f"it takes imported {what} wrapped with: {', '.join(can) or 'nothing'}")


def _imports(keeper: HsmKeeper, algorithm: WrappingAlgorithm, spec: KeySpec) -> bool:
    try:
        keeper.wrapping_usage(algorithm, spec)
    except KmsError:
        return False
    return True


def _swap_devices() -> list[str]:
    try:
        return [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    except OSError:
        return []
