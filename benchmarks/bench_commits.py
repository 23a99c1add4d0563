"""How many changes a second are made durable: by threads of one node and by several nodes, on SQLite and on PostgreSQL.

    python -m pytest benchmarks/bench_commits.py        # BENCH_COMMIT_SECONDS=5 for each case

DisableKey and EnableKey by turns (one commit each) on keys of its own for each thread, and CreateKey SOFTWARE (an intent, the material, an
outcome: three commits). SQLite with its settings as ever, PostgreSQL durable (fsync on) on this machine. Of SQLite several nodes are
several processes of one home; of PostgreSQL processes with homes of their own. Wall time. Writes benchmarks/results/commits.json, .txt.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filled
import pytest
from paired import RESULTS, machine

import kmscore
from kmscore.errors import KmsError

SECONDS = float(os.environ.get("BENCH_COMMIT_SECONDS", "5"))
SHAPES = ((1, 1), (1, 4), (1, 16), (2, 1), (2, 4), (4, 4))  # nodes, threads of each
OPERATIONS = ("DisableKey/EnableKey", "CreateKey SOFTWARE")


def node(home: Path, url: str, threads: int, operation: str, start: Any, results: Any) -> None:
    """One process: it opens, waits for the others, works for SECONDS; answers how many operations were done and how many refused."""
    done, refused = [0] * threads, [0] * threads
    with kmscore.open_kms(home, pkcs11_module="none", database_url=url, ticker=False) as kms:
        keys = [kms.create_key().key_id for _ in range(threads)]
        start.wait()
        deadline = time.perf_counter() + SECONDS

        def work(index: int) -> None:
            while time.perf_counter() < deadline:
                try:
                    if operation == "CreateKey SOFTWARE":
                        kms.create_key()
                    else:
                        (kms.enable_key if done[index] % 2 else kms.disable_key)(keys[index])
                    done[index] += 1
                except KmsError as error:
                    if not error.retryable:
                        raise
                    refused[index] += 1

        workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        results.put((sum(done), sum(refused), time.perf_counter() - began))


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    cases: list[dict[str, Any]] = []
    yield cases
    lines = [f"commits benchmark, operations a second, {SECONDS:g} s each", f"{'':<36}{'a second':>12}{'ms each':>12}{'refused':>12}"]
    for case in cases:
        name = f"{case['store']}, {case['nodes']} x {case['threads']}, {case['operation']}"
        lines.append(f"{name:<44}{case['per_second']:>8.0f}{case['ms']:>12.2f}{case['refused']:>12}")
    RESULTS.mkdir(exist_ok=True)
    RESULTS.joinpath("commits.json").write_text(json.dumps({"setting": machine(), "cases": cases}, indent=1) + "\n")
    RESULTS.joinpath("commits.txt").write_text("\n".join(lines) + "\n")
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write("\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    from local_servers import ServerError

    try:
        with filled.postgres_server(durable=True) as server:
            yield server
    except ServerError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("store", ["SQLite", "PostgreSQL"])
def test_commits(
    request: pytest.FixtureRequest, table: list[dict[str, Any]], tmp_path: Path, store: str, shape: tuple[int, int], operation: str
) -> None:
    nodes, threads = shape
    url = ""
    if store == "PostgreSQL":
        server = request.getfixturevalue("server")
        name = f"commits_{nodes}_{threads}_{OPERATIONS.index(operation)}"
        server.psql(f"DROP DATABASE IF EXISTS {name}")
        url = server.create_database(name)
    first = tmp_path / "home"
    with kmscore.open_kms(first, pkcs11_module="none", database_url=url, ticker=False):
        pass
    homes = [first]
    for number in range(1, nodes):
        home = first
        if url:  # nodes share the root key
            home = tmp_path / f"home{number}"
            home.mkdir(mode=0o700)
            for file in ("root.key", "credentials"):
                home.joinpath(file).write_bytes(first.joinpath(file).read_bytes())
                home.joinpath(file).chmod(0o600)
        homes.append(home)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(nodes), context.Queue()
    processes = [context.Process(target=node, args=(home, url, threads, operation, start, results)) for home in homes]
    for process in processes:
        process.start()
    found = [results.get(timeout=SECONDS + 60) for _ in processes]
    for process in processes:
        process.join()
    total, seconds = sum(done for done, _, _ in found), max(took for _, _, took in found)
    table.append(
        {
            "store": store,
            "nodes": nodes,
            "threads": threads,
            "operation": operation,
            "per_second": total / seconds,
            "ms": seconds * 1000 * nodes * threads / max(1, total),
            "refused": sum(refused for _, refused, _ in found),
        }
    )
