"""What killed calls leave in the directory of a SoftHSM token, and the sweep that clears it away (RELIABILITY 1.1 facts 7-9, rule 7c).

Works on the files, not over PKCS#11: most fragments are invisible there, and the nameless session objects of our own hot keys, which
must not be touched, are not files. The caller holds the token lock exclusively, so nobody of ours is in the middle of making an object.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from kmscore.custody.objectfile import has_id, is_fragment, is_nameless
from kmscore.disk import sync_directory

TOKEN_OBJECT = "token.object"
# A foreign tool that is making an object right now takes no lock of ours: what changes between two looks is alive. A whole C_GenerateKey
# takes 13 ms, of which each empty or nameless state lasts well under one. Seconds.
SECOND_LOOK_SECONDS = 0.1


def find_fragments(token_directory: Path) -> dict[Path, int]:
    """Fragments now, each with the time of its last change in nanoseconds. token.object, however broken, is never one."""
    return {path: changed for path, changed, data in _objects(token_directory) if is_fragment(data)}


def find_nameless(token_directory: Path) -> list[Path]:
    """Objects with neither id nor label: fragments, and finished ones that somebody made so and that are not ours to remove."""
    return [path for path, _, data in _objects(token_directory) if not data or is_nameless(data)]


def named_files(token_directory: Path) -> frozenset[Path]:
    """The object files, finished or not, that have a CKA_ID."""
    return frozenset(path for path, _, data in _objects(token_directory) if has_id(data))


def _objects(token_directory: Path) -> Iterator[tuple[Path, int, bytes]]:
    for path in sorted(token_directory.glob("*.object")):
        if path.name == TOKEN_OBJECT:
            continue
        try:
            yield path, path.stat().st_mtime_ns, path.read_bytes()
        except FileNotFoundError:
            continue  # destroyed meanwhile


def sweep_fragments(token_directory: Path) -> int:
    """Remove what was a fragment at two looks, and lock files without an object; durable on return. Answers how many fragments went."""
    stray = _stray_locks(token_directory)
    first = find_fragments(token_directory)
    if not first and not stray:
        return 0
    time.sleep(SECOND_LOOK_SECONDS)
    dead = [path for path, changed in find_fragments(token_directory).items() if first.get(path) == changed]
    for path in dead:
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)
    for path in stray & _stray_locks(token_directory):
        path.unlink(missing_ok=True)
    sync_directory(token_directory)
    return len(dead)


def _stray_locks(token_directory: Path) -> set[Path]:
    """Lock files whose object is gone: a C_DestroyObject that died between its two unlinks."""
    return {path for path in token_directory.glob("*.lock") if path.name != "token.lock" and not path.with_suffix(".object").exists()}
