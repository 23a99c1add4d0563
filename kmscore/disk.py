"""Small files that must survive a kill or a power cut at any instant: written whole beside their place, synced, renamed into it.

And the durability of directory entries, privacy, and room on the disk. Knows nothing of tokens or keys.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from kmscore.errors import SetupError

# A SoftHSM login on a full disk reports success and empties the token (RELIABILITY 1.1 fact 3), so nothing starts below this. Bytes.
FREE_SPACE_FLOOR = 16 << 20


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path`, whatever the umask; durable on return, and a kill before leaves the old file or none. One writer at a time."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """A directory of mode 0700, durable on return. One that exists is left as it is."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    path.chmod(0o700)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(path: Path) -> None:
    """Make every file and directory under `path`, and `path` itself, durable."""
    for directory, _, names in os.walk(path):
        for name in names:
            sync_file(Path(directory, name))
        sync_directory(Path(directory))


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise SetupError(f"cannot remove {path}, the remains of an interrupted first start; remove it by hand")


def require_private(path: Path) -> None:
    """Refuse a file or directory that others can reach (RELIABILITY H5). Raises SetupError with the command that mends it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        fix = "go-rwx"
        raise SetupError(f"{path} has mode {mode:04o}: other users can reach it. Run: chmod {fix} '{path}'")


def free_bytes(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def require_space(path: Path) -> None:
    """Raises SetupError when the file system of `path` has less than FREE_SPACE_FLOOR bytes to spare."""
    free = free_bytes(path)
    if free < FREE_SPACE_FLOOR:
        raise SetupError(
            f"only {free >> 10} KiB are free on the file system of {path}; a login on a full disk destroys a SoftHSM token, "
            f"so at least {FREE_SPACE_FLOOR >> 20} MiB are needed. Free some space and start again"
        )
