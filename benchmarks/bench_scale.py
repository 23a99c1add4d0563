"""Does it matter how many keys there are? What one call costs, and touches in the store, at 1 k, 10 k and 100 k keys.

    python -m pytest benchmarks/bench_scale.py                      # BENCH_SCALE=full, or make bench-scale: 1 k, 100 k and 1 M

Writes benchmarks/results/scale.json, scale.txt and scale.png. The homes are filled.py's, kept between runs; the first one takes minutes
for 1 M. Times are medians of wall time, with warm caches, of an engine with an injected clock; PostgreSQL runs without fsync (what its
commits cost is measured by bench_commits.py). Touched are, of SQLite, the steps of its virtual machine; of PostgreSQL the rows that its
scans read, and the pages, counted when the statements of a call are done once more.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import filled
import pytest
from paired import RESULTS, machine

import kmscore
from kmscore.engine.kms import Kms
from kmscore.store.datastore import Datastore
from kmscore.store.readmodel import from_micros

SIZES = (1_000, 100_000, 1_000_000) if os.environ.get("BENCH_SCALE") == "full" else (1_000, 10_000, 100_000)
SECONDS = float(os.environ.get("BENCH_SCALE_SECONDS", "1.5"))  # for each operation
ROUNDS, FEWEST = 200, 5
ROOT = Path(__file__).resolve().parent.parent
QUIET = filled.END - timedelta(hours=1)  # nothing is due yet
PAGE, DEEP = 100, 5_000
VIEWS = 100_000  # of the measure of memory

Statement = tuple[str, tuple[Any, ...]]


@dataclass
class Case:
    store: str
    keys: int
    operation: str
    median_ms: float
    p95_ms: float
    rounds: int
    touched: dict[str, int] = field(default_factory=dict)


# --- what a call says to the store -----------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What this thread said to any store: the statements, and the steps that SQLite took for them."""

    statements: list[Statement] = field(default_factory=list)
    steps: int = 0


@contextmanager
def recorded() -> Iterator[Told]:
    told = Told()
    genuine, thread = Datastore.transaction, threading.get_ident()

    def step() -> None:
        told.steps += 1

    class Recording:
        def __init__(self, cursor: Any) -> None:
            self._cursor = cursor
            self.fetchone, self.fetchall = cursor.fetchone, cursor.fetchall

        def execute(self, statement: str, params: Any = ()) -> None:
            told.statements.append((statement, tuple(params)))
            self._cursor.execute(statement, params)

    @contextmanager
    def transaction(self: Datastore, *, commit: bool) -> Iterator[Any]:
        with genuine(self, commit=commit) as cursor:
            if threading.get_ident() != thread:
                yield cursor
                return
            connection = getattr(getattr(cursor, "sqlite_cursor", None), "connection", None)
            if connection is not None:
                connection.set_progress_handler(step, 1)
            try:
                yield Recording(cursor)
            finally:
                if connection is not None:
                    connection.set_progress_handler(None, 0)

    Datastore.transaction = transaction  # type: ignore[method-assign]
    try:
        yield told
    finally:
        Datastore.transaction = genuine  # type: ignore[method-assign]


def _rows_and_pages(url: str, told: list[Statement]) -> dict[str, int]:
    import psycopg

    rows = pages = 0
    with psycopg.connect(url) as db:
        for sql, params in told:
            if sql.split()[0] not in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                continue
            text = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql.replace("%", "%%").replace("?", "%s")
            try:
                with db.transaction():
                    (plan,) = db.execute(text, params).fetchone()[0]  # type: ignore[index]
            except psycopg.IntegrityError:  # a row that is there by now
                continue
            rows += sum(map(_rows, _nodes(plan["Plan"])))
            pages += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        db.rollback()
    return {"rows": rows, "pages": pages}


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _rows(node: dict[str, Any]) -> int:
    if not node["Node Type"].endswith("Scan") or node["Node Type"] in ("Bitmap Index Scan", "Subquery Scan", "CTE Scan"):
        return 0
    removed = sum(node.get(name, 0) for name in ("Rows Removed by Filter", "Rows Removed by Index Recheck"))
    return round((node["Actual Rows"] + removed) * node["Actual Loops"])


# --- measuring -------------------------------------------------------------------------------------------------------------------


class Bench:
    """One store of one size, with an engine open on it."""

    def __init__(self, store: str, keys: int, home: Path, url: str) -> None:
        self.store, self.keys, self.home, self.url = store, keys, home, url
        self.cases: list[Case] = []
        self.clock = kmscore.FixedClock(QUIET)

    def open(self) -> Kms:
        return kmscore.open_kms(self.home, pkcs11_module="none", database_url=self.url, ticker=False, clock=self.clock)

    def case(self, operation: str, work: Callable[[], object], rounds: int = ROUNDS, *, of: int = 1) -> None:
        """Measure calls of `work`, which does `of` of the operation (0: as many as it answers); then once more for what it touches."""
        times: list[float] = []
        deadline = time.perf_counter() + SECONDS
        while len(times) < rounds and (len(times) < min(FEWEST, rounds) or time.perf_counter() < deadline):
            start = time.perf_counter()
            done = work()
            times.append((time.perf_counter() - start) * 1e3 / (of or int(str(done))))
        with recorded() as told:
            done = work()
        touched = _rows_and_pages(self.url, told.statements) if self.url else {"steps": told.steps}
        found = {name: round(number / (of or int(str(done)))) for name, number in touched.items()}
        p95 = sorted(times)[int(len(times) * 0.95)] if len(times) > 1 else times[0]
        self.cases.append(Case(self.store, self.keys, operation, round(statistics.median(times), 4), round(p95, 4), len(times), found))

    def all(self) -> list[Case]:
        def open_and_close() -> None:
            self.open().close()

        self.case("open and close the engine", open_and_close, 20)
        with self.open() as kms:
            self._reads(kms)
            self._due(kms)
            self._changes(kms)
        return self.cases

    def _reads(self, kms: Kms) -> None:
        ids = iter(self._some_ids(3 * (ROUNDS + 1)))
        last = min(DEEP, self.keys // PAGE)
        aliases = kms.list_aliases(page_size=1).total_count
        one = next(ids)

        def again() -> None:
            kms.describe_key(one)

        self.case("tick, nothing due", kms.run_due)
        self.case("ListKeys, page 1", lambda: kms.list_keys(page_size=PAGE))
        self.case(f"ListKeys, page {DEEP:,} or last", lambda: kms.list_keys(page_number=last, page_size=PAGE))
        self.case("ListKeys, KeyState=Disabled", lambda: kms.list_keys(page_size=PAGE, filters={"KeyState": ["Disabled"]}))
        self.case("DescribeKey, first time", lambda: kms.describe_key(next(ids)))
        self.case("DescribeKey, again", again)
        self.case("Encrypt, first time", lambda: kms.encrypt(next(ids), b"text"))
        self.case("ListAliases, page 1", lambda: kms.list_aliases(page_size=PAGE))
        self.case("ListAliases, last page", lambda: kms.list_aliases(page_number=aliases // PAGE, page_size=PAGE))
        self.case("ListTagResources, one key", lambda: kms.list_tag_resources(resource_id=[one]))
        self.case("ListTagResources, page 1 of all", kms.list_tag_resources)
        self.case("gauges of /metrics", kms.gauges.stored)

    def _due(self, kms: Kms) -> None:
        """Of a few hundred keys that are due: finding 100, counting all, and rotating 100."""
        self._advance(kms, 300)
        # With work that is handed out (kms.hand_out_due): it is given back each time, so that the next round finds it again.
        hand_out: Any = getattr(kms, "hand_out_due", None)

        def find() -> None:
            if hand_out is None:
                assert len(kms._s.queries.due(self.clock.now(), 100)) == 100
            else:
                work = hand_out(None, 100)
                kms.give_back_due(work)  # type: ignore[attr-defined]

        self.case("find 100 of 300 due", find)
        self.case("gauges, 300 due", kms.gauges.stored)
        self.clock.advance(QUIET - self.clock.now())

        def rotate() -> int:
            self._advance(kms, 100)
            return len(kms.run_due().rotated)

        self.case("rotation in a tick of 100", rotate, 3, of=0)

    def _changes(self, kms: Kms) -> None:
        ids = iter(self._some_ids(ROUNDS + 1, "Disabled"))

        def switch() -> None:
            key_id = next(ids)
            kms.enable_key(key_id)
            kms.disable_key(key_id)

        self.case("EnableKey or DisableKey", switch, self.keys // 30, of=2)

    def _advance(self, kms: Kms, due: int) -> None:
        """To when so many keys are due."""
        with kms._s.queries._datastore.reading() as cursor:
            cursor.execute("SELECT due_at FROM due_work ORDER BY due_at LIMIT 1 OFFSET ?", (due - 1,))
            at = from_micros(cursor.fetchone()[0])
        self.clock.advance(max(timedelta(), at - self.clock.now()))

    def _some_ids(self, number: int, state: str = "Enabled") -> list[str]:
        with closing(sqlite3.connect(filled.sqlite_home(self.keys) / "kms.db")) as db:
            # The ids are random, so the first in their order are anywhere in the log.
            found = db.execute("SELECT key_id FROM keys WHERE state = ? ORDER BY key_id LIMIT ?", (state, number)).fetchall()
        ids = [row[0] for row in found] * (number // len(found) + 1)
        random.Random(1).shuffle(ids)
        return ids


def bytes_per_key(bench: Bench, server: Any) -> int:
    if not bench.url:
        with closing(sqlite3.connect(bench.home / "kms.db")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return (bench.home / "kms.db").stat().st_size // bench.keys
    name = bench.url.rpartition("/")[2]
    return int(server.psql(f"SELECT pg_database_size('{name}')", name)) // bench.keys


def memory(home: Path, url: str) -> dict[str, float]:
    """In a process of its own: MB resident with an engine open, for each 100,000 views, and at the peak of the first comparison."""
    found: dict[str, float] = {}
    with kmscore.open_kms(home, pkcs11_module="none", database_url=url, ticker=False, clock=kmscore.FixedClock(QUIET)) as kms:
        found["open_mb"] = opened = _resident()
        start = time.perf_counter()
        kms.reconcile()
        found["reconcile_seconds"] = time.perf_counter() - start
        found["reconcile_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        opened = _resident()
        number = page = 0
        while number < VIEWS and (items := kms.list_keys(page_number=(page := page + 1), page_size=PAGE).items):
            for item in items:
                kms.describe_key(item.key_id)
            number += len(items)
        found["views"] = number
        found["mb_per_100k_views"] = (_resident() - opened) * 100_000 / number
    return {name: round(value, 1) for name, value in found.items()}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def memory_apart(home: Path, url: str) -> dict[str, float]:
    said = subprocess.run(
        [sys.executable, __file__, str(home), url],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))},
    )
    return dict(json.loads(said.stdout))


# --- the report --------------------------------------------------------------------------------------------------------------------


class Scale:
    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.stores: list[dict[str, Any]] = []

    def finish(self, config: pytest.Config) -> None:
        if not self.cases:
            return
        RESULTS.mkdir(exist_ok=True)
        setting = {**machine(), "clock": "perf_counter", "seconds": SECONDS, "sqlite": sqlite3.sqlite_version, "postgresql": "fsync=off"}
        found = {"setting": setting, "cases": [asdict(case) for case in self.cases], "stores": self.stores}
        RESULTS.joinpath("scale.json").write_text(json.dumps(found, indent=1) + "\n")
        RESULTS.joinpath("scale.txt").write_text(text := self.table())
        self.plot(RESULTS / "scale.png")
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write("\n" + text)

    def table(self) -> str:
        columns = list(dict.fromkeys((case.store, case.keys) for case in self.cases))
        rows = list(dict.fromkeys(case.operation for case in self.cases))
        found = {(case.operation, case.store, case.keys): case for case in self.cases}
        lines = ["scale benchmark, medians of wall time in ms, warm caches"]
        heads = [f"{'SQLite' if store == 'sqlite' else 'PG'} {_short(keys)}" for store, keys in columns]
        lines.append(f"{'':<36}" + "".join(f"{head:>14}" for head in heads))
        for row in rows:
            cells = [found.get((row, *column)) for column in columns]
            lines.append(f"{row:<36}" + "".join(f"{_figure(cell.median_ms) if cell else '':>14}" for cell in cells))
        lines += ["", "touched: steps of SQLite's virtual machine; rows/pages of PostgreSQL"]
        for row in rows:
            cells = [found.get((row, *column)) for column in columns]
            said = ["/".join(f"{n}" for n in cell.touched.values()) if cell else "" for cell in cells]
            lines.append(f"{row:<36}" + "".join(f"{each:>14}" for each in said))
        lines.append("")
        names = list(dict.fromkeys(name for each in self.stores for name in each if name not in ("store", "keys")))
        for name in names:
            values = {(each["store"], each["keys"]): each.get(name, "") for each in self.stores}
            lines.append(f"{name.replace('_', ' '):<36}" + "".join(f"{values.get(column, '')!s:>14}" for column in columns))
        return "\n".join(lines) + "\n"

    def plot(self, path: Path) -> None:
        try:
            import matplotlib
        except ImportError:
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot

        stores = list(dict.fromkeys(case.store for case in self.cases))
        figure, axes = pyplot.subplots(1, len(stores), figsize=(6.5 * len(stores), 7), sharey=True, squeeze=False, layout="constrained")
        for axis, store in zip(axes[0], stores, strict=True):
            for number, operation in enumerate(dict.fromkeys(case.operation for case in self.cases)):
                chosen = [case for case in self.cases if (case.store, case.operation) == (store, operation)]
                axis.plot(
                    [case.keys for case in chosen],
                    [case.median_ms for case in chosen],
                    marker="osD^v"[number // 10],
                    color=f"C{number % 10}",
                    linestyle=("-", "--")[number // 10],
                    label=operation,
                )
            axis.set(xscale="log", yscale="log", xlabel="keys", title={"sqlite": "SQLite", "postgresql": "PostgreSQL"}[store])
            axis.grid(visible=True, which="major", alpha=0.3)
        axes[0][0].set_ylabel("milliseconds (median)")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def _short(number: int) -> str:
    return f"{number // 1_000_000} M" if number >= 1_000_000 else f"{number // 1_000} k"


def _figure(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


# --- as a test ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scale(request: pytest.FixtureRequest) -> Iterator[Scale]:
    scale = Scale()
    yield scale
    scale.finish(request.config)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    from local_servers import ServerError

    with ExitStack() as stack:
        try:
            yield stack.enter_context(filled.postgres_server())
        except ServerError as error:
            pytest.skip(str(error))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("keys", SIZES)
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_scale(request: pytest.FixtureRequest, scale: Scale, store: str, keys: int) -> None:
    server = request.getfixturevalue("server") if store == "postgresql" else None
    with filled.copy_of_home(keys, server) as (home, url):
        bench = Bench(store, keys, home, url)
        size = bytes_per_key(bench, server)
        scale.cases += bench.all()
        scale.stores.append({"store": store, "keys": keys, "bytes_per_key": size, **memory_apart(home, url)})


if __name__ == "__main__":
    print(json.dumps(memory(Path(sys.argv[1]), sys.argv[2])))
