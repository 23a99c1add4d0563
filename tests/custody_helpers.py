"""What the custody tests share: homes, open keepers, children that die at a chosen system call, and a table in memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmscore.config import Settings, load_settings
from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.locks import home_lock
from kmscore.custody.port import MaterialRef
from kmscore.custody.token import open_hsm
from kmscore.domain.specs import KeySpec, KeyUsage, Suite

ROOT = Path(__file__).parent.parent
STRACE = shutil.which("strace")
SOFTHSM_UTIL = shutil.which("softhsm2-util")
CERTUTIL = shutil.which("certutil")
NSS_MODULES = tuple(
    f"{where}/libsoftokn3.so"
    for where in (
        *("/usr/lib/x86_64-linux-gnu/nss", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu/nss", "/usr/lib/aarch64-linux-gnu"),
        "/usr/lib64",
    )
)
INSTANCE = "test"

# What every child runs first: `home` and `keeper()` to open the home's token the way bootstrap does.
PRELUDE = """
import os, sys
from custody_helpers import open_keeper, new_ref, mark
home = sys.argv[1]
"""


def settings_of(home: Path, **more: object) -> Settings:
    return load_settings(home, environ={}, **more)


def open_keeper(home: str | Path, *, material_known: bool = False, instance: str = INSTANCE, **more: object) -> HsmKeeper:
    settings = settings_of(Path(home), **more)
    settings.home.mkdir(mode=0o700, exist_ok=True)
    with home_lock(settings.home):
        return open_hsm(settings, instance, material_known=material_known)


@contextmanager
def opened(home: Path, **more: object) -> Iterator[HsmKeeper]:
    keeper = open_keeper(home, **more)  # type: ignore[arg-type]
    try:
        yield keeper
    finally:
        keeper.close()


def new_ref(
    suite: Suite = Suite.XAES_256_GCM,
    spec: KeySpec = KeySpec.AES_256,
    usage: KeyUsage = KeyUsage.ENCRYPT_DECRYPT,
    *,
    imported: bool = False,
) -> MaterialRef:
    return MaterialRef(os.urandom(16), spec, suite, usage, imported)


def new_nss(directory: Path) -> dict[str, str]:
    """A new database of NSS softoken, as settings. Skips the test where NSS is not installed."""
    module = next((path for path in NSS_MODULES if Path(path).exists()), None)
    if module is None or CERTUTIL is None:
        pytest.skip("needs libsoftokn3.so and certutil (Debian: libnss3, libnss3-tools)")
    directory.mkdir(mode=0o700)
    pin = directory / "pin"
    pin.touch(mode=0o600)
    pin.write_text("Nss-pin-1234\n")
    subprocess.run([CERTUTIL, "-N", "-d", f"sql:{directory}", "-f", str(pin)], check=True)
    return {
        "pkcs11_module": module,
        "pkcs11_token": "NSS Certificate DB",
        "pkcs11_pin_file": str(pin),
        "pkcs11_init_args": f"configdir='sql:{directory}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=",
    }


@contextmanager
def operators_softhsm(directory: Path) -> Iterator[dict[str, str]]:
    """A SoftHSM token that is not kmscore's own, with all its mechanisms, as settings. Skips the test without softhsm2-util."""
    if SOFTHSM_UTIL is None:
        pytest.skip("needs softhsm2-util")
    (directory / "theirs").mkdir()
    (directory / "their.conf").write_text(f"directories.tokendir = {directory}/theirs\nobjectstore.backend = file\nlog.level = ERROR\n")
    pin = directory / "their-pin"
    pin.touch(mode=0o600)
    pin.write_text("4711")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(directory / "their.conf"))
        command = [SOFTHSM_UTIL, "--init-token", "--free", "--label", "theirs", "--pin", "4711", "--so-pin", "12345678"]
        subprocess.run(command, check=True, capture_output=True)
        yield {"pkcs11_token": "theirs", "pkcs11_pin_file": str(pin)}


def header_of(ref: MaterialRef) -> bytes:
    return bytes((1, ref.suite, 0)) + ref.material_id


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A directory in memory where there is one: SoftHSM rewrites a file 36 times for a key, which takes 13 ms on a disk and 1 in memory."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="kmscore-test-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def mark(text: str) -> None:
    """A line that strace shows, to tell which system calls come after it."""
    os.write(2, f"MARK {text}\n".encode())


def child(code: str, *arguments: object, strace: list[str] | None = None) -> subprocess.Popen[str]:
    """A Python process that runs PRELUDE and `code`; under strace with these options when given."""
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    if strace is not None:
        command = [str(STRACE), "-f", "-qq", *strace, *command]
    environment = {key: value for key, value in os.environ.items() if key not in ("SOFTHSM2_CONF", "KMS_HOME")}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def run_child(code: str, *arguments: object, strace: list[str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    process = child(code, *arguments, strace=strace)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def syscalls_after_mark(log: Path, text: str, names: tuple[str, ...]) -> list[tuple[str, int]]:
    """(system call, its number among those of its name) for every call after the mark, as `inject=NAME:when=NUMBER` counts them."""
    count = dict.fromkeys(names, 0)
    found: list[tuple[str, int]] = []
    after = False
    for line in log.read_text(errors="replace").splitlines():
        match = re.search(r"(?:^|\s)(\w+)\(", line)
        if match is None or match[1] not in count or "resumed" in line:
            continue
        count[match[1]] += 1
        if f"MARK {text}" in line:
            after = True
        elif after:
            found.append((match[1], count[match[1]]))
    return found


def sample(points: list[tuple[str, int]], size: int) -> list[tuple[str, int]]:
    """`size` points, evenly spread, always with the first and the last."""
    if len(points) <= size:
        return points
    return [points[round(index * (len(points) - 1) / (size - 1))] for index in range(size)]


class MemoryTable:
    """A MaterialTable that forgets everything with the test."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def put(self, material_id: bytes, wrapped: bytes) -> None:
        self.rows[material_id] = wrapped

    def get(self, material_id: bytes) -> bytes | None:
        return self.rows.get(material_id)

    def remove(self, material_id: bytes) -> None:
        self.rows.pop(material_id, None)

    def ids(self) -> list[bytes]:
        return list(self.rows)
