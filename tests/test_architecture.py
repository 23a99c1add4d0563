"""The house: which room may import which (CONTRIBUTING.md), and a few rules that a grep can hold."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kmscore"
SCHEDULER = ROOT / "scheduler"

BASE = {"errors", "ids", "clock", "config", "process", "disk", "logs", "_percent", "asked", "counts", "tracing"}
# room -> the rooms of kmscore that it may import besides itself and the base
ROOMS: dict[str, set[str]] = {
    "domain": set(),
    "store": {"domain", "results"},
    "results": {"domain"},
    "custody": {"domain", "results"},
    "evidence": {"domain", "results"},
    "engine": {"domain", "store", "custody", "evidence", "results"},
    "operations": {"domain", "results"},
    "files": {"domain", "results"},
    "wrapping": {"domain"},
    "signing": set(),
    "client": {"signing", "domain", "results"},
    "cli": {"operations", "files", "wrapping", "client", "domain", "results"},
    "api": {"operations", "signing", "domain", "results"},
    "console": {"operations"},
}
# Concrete parts that the engine knows only through a port: bootstrap alone wires them.
ENGINE_SEES_OF_CUSTODY = {"kmscore.custody.port"}
# module name -> rooms where it may appear (everywhere else it may not)
KEPT = {
    "sqlite3": {"store"},
    "psycopg": {"store"},
    "pkcs11": {"custody"},
    "kmscore.custody._p11": {"custody", "bootstrap", "__init__"},
    "cryptography": {"custody", "wrapping", "api"},
    "tink": {"files"},
    "click": {"cli"},
    "uvicorn": {"api"},
    "prometheus_client": {"api"},
    "starlette": {"api"},
    "opentelemetry": {"tracing"},
    "celery": set(),
    "redis": set(),
}
IMPURE = {"os", "time", "random", "secrets", "uuid4", "socket", "sqlite3", "pathlib", "threading", "subprocess", "logging"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, imported for typing only) of every import in a file, in whatever depth."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "kmscore" else [str(node.module)]
            found += [(name, id(node) in typing_only) for name in names]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room in ("bootstrap", "__init__"):
        return
    allowed = BASE if room in BASE else BASE | ROOMS[room] | {room}
    for module, typing_only in imports(path):
        parts = module.split(".")
        if parts[0] != "kmscore" or len(parts) == 1:
            continue
        if path.name == "serve.py" and module in ("kmscore.api", "kmscore.api.server", "kmscore.api.localca"):
            continue  # `kms serve` starts the one other door that listens
        if module == "kmscore.__version__":
            continue
        if room in ("cli", "api", "files") and (parts[1] in ("open_kms", "doctor", "protect_process", "__version__") or typing_only):
            continue  # the public face
        assert parts[1] in allowed, f"{path.name} ({room}) imports {module}"
        if room == "engine" and parts[1] == "custody":
            assert module in ENGINE_SEES_OF_CUSTODY, f"{path.name} knows the concrete {module}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_kept_to_one_room_stays_there(path: Path) -> None:
    for module, _ in imports(path):
        for name, rooms in KEPT.items():
            if module == name or module.startswith(name + "."):
                assert room_of(path) in rooms, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted(SCHEDULER.rglob("*.py")), ids=lambda path: path.name)
def test_the_scheduler_sees_the_public_face_only(path: Path) -> None:
    for module, typing_only in imports(path):
        parts = module.split(".")
        if parts[0] == "kmscore" and len(parts) > 1 and not typing_only:
            assert parts[1] in BASE | {"results", "open_kms", "protect_process"}, f"{path.name} imports {module}"
        for name, rooms in KEPT.items():
            if name != "celery" and (module == name or module.startswith(name + ".")):
                assert "scheduler" in rooms, f"{path.name} imports {module}"
    text = path.read_text()
    assert not re.search(r"datetime\.(now|utcnow|today)\(|time\.time\(|os\.environ|getenv", text), path.name


def test_nothing_imports_the_scheduler() -> None:
    for path in sources():
        assert not [module for module, _ in imports(path) if module.split(".")[0] == "scheduler"], path.name


def test_the_domain_is_pure() -> None:
    for path in (PACKAGE / "domain").glob("*.py"):
        for module, _ in imports(path):
            assert module.split(".")[0] not in IMPURE, f"{path.name} imports {module}"
        assert not re.search(r"\bnow\(\)|uuid4|urandom|token_bytes", path.read_text()), path.name


def test_time_and_environment_come_from_one_place() -> None:
    for path in sources():
        text = path.read_text()
        where = str(path.relative_to(PACKAGE))
        if where != "clock.py":
            assert not re.search(r"datetime\.(now|utcnow|today)\(|time\.time\(", text), where
        if where not in (
            "config.py",
            "custody/module.py",
            "api/server.py",
            "api/metrics.py",
        ):  # the last two: from a service to its workers
            assert "os.environ" not in text and "getenv" not in text, where


def test_files_stay_small() -> None:
    long = {}
    for folder, pattern in (("kmscore", "**/*.py"), ("ext", "*"), ("scheduler", "**/*.py")):
        for path in (ROOT / folder).glob(pattern):
            if path.is_file() and (lines := len(path.read_text().splitlines())) > 420:
                long[str(path.relative_to(ROOT))] = lines
    assert not long


def test_no_build_product_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert tracked
    assert not [name for name in tracked if name.endswith((".so", ".pyc", ".o", ".db", ".egg-info"))]
