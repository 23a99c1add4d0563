"""/metrics, and that what is written of it names exactly what it tells: the dashboard, the alarms and the table of OPERATIONS.md."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kmscore import counts
from kmscore.api import metrics
from kmscore.api.metrics import COUNTERS, OWN, STORED, Metrics, _forget_the_dead, _reserve
from kmscore.errors import KmsError, TokenError

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Everything:
    """Tells all that can be told."""

    def own(self) -> Mapping[str, float]:
        return dict.fromkeys(OWN, 1.0)

    def stored(self) -> Mapping[str, float]:
        return dict.fromkeys(STORED, 1.0)


class Unreadable(Everything):
    def stored(self) -> Mapping[str, float]:
        raise KmsError("ServiceUnavailableTemporary", "the store cannot read")


def values(told: Metrics) -> dict[str, float]:
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(told.render().decode())
        for sample in family.samples
    }


def exposed() -> dict[str, tuple[str, str]]:
    """Name -> (kind, help) of every metric, under the names that a query uses."""
    text = Metrics(Everything()).render().decode()
    helps = dict(re.findall(r"# HELP (\S+) (.*)", text))
    return {name: (kind, helps[name]) for name, kind in re.findall(r"# TYPE (\S+) (\S+)", text) if not name.endswith("_created")}


def named(text: str) -> set[str]:
    """A histogram is queried by its parts."""
    return {re.sub(r"^(kms_request_seconds)_(bucket|count|sum)$", r"\1", name) for name in re.findall(r"\bkms_[a-z0-9_]+", text)}


def test_own_names_are_those_of_the_tables() -> None:
    known = {f"kms_{name}" for name in (*OWN, *STORED)} | {f"kms_{name}_total" for name in COUNTERS}
    assert set(exposed()) == known | {"kms_requests_total", "kms_request_seconds"}


def test_the_dashboard_names_what_there_is() -> None:
    dashboard = json.loads((DOCS / "grafana" / "kmscore.json").read_text())
    (datasource,) = [variable["name"] for variable in dashboard["templating"]["list"] if variable["type"] == "datasource"]
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert named(" ".join(expressions)) == set(exposed())  # nothing that is told is out of sight either
    assert all(panel["datasource"]["uid"] == f"${{{datasource}}}" for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({tuple(panel["gridPos"].items()) for panel in dashboard["panels"]}) == len(dashboard["panels"])


def alarms() -> dict[str, str]:
    (group,) = yaml.safe_load((DOCS / "prometheus" / "alerts.yml").read_text())["groups"]
    assert all(rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"] for rule in group["rules"])
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def test_the_alarms_name_what_there_is() -> None:
    for alarm, expression in alarms().items():
        assert named(expression), alarm
        assert named(expression) <= set(exposed()), alarm
        assert expression.count("(") == expression.count(")"), alarm


def section(title: str) -> str:
    return re.split(r"^## ", (DOCS / "OPERATIONS.md").read_text().partition(f"## {title}\n")[2], maxsplit=1, flags=re.M)[0]


def test_the_table_of_metrics_is_complete() -> None:
    rows = re.findall(r"^\| `(kms_[a-z0-9_]+)` \|", section("Metrics"), re.M)
    assert sorted(rows) == sorted(exposed())


def test_the_table_of_alarms_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section("Alarms"), re.M)
    assert {name: " ".join(expression.replace("\\|", "|").split()) for name, expression in rows} == {
        name: " ".join(expression.split()) for name, expression in alarms().items()
    }


def test_counts_are_told_once() -> None:
    before = values(told := Metrics()).get("kms_token_errors_total CKR_DEVICE_ERROR", 0)
    TokenError(0x30, "C_Sign", "CKR_DEVICE_ERROR")
    TokenError(0xE1, "C_GetSlotList", "no token is labelled 'x'")  # what is said of it is no name
    after = values(told)
    assert after == values(told) | {name: after[name] for name in after if "memory" in name}
    assert after["kms_token_errors_total CKR_DEVICE_ERROR"] == before + 1
    assert after["kms_token_errors_total CKR 0xe1"] >= 1
    assert not any("labelled" in name for name in after)


def test_requests_in_flight() -> None:
    told = Metrics()
    told.in_flight = 3
    assert values(told)["kms_requests_in_flight"] == 3


def test_a_store_that_cannot_be_read_leaves_its_gauges_out(caplog: pytest.LogCaptureFixture) -> None:
    found = values(Metrics(Unreadable()))
    assert found["kms_store_up"] == 0
    assert found["kms_key_views"] == 1
    assert not {f"kms_{name}" for name in STORED if name != "store_up"} & set(found)
    assert "the store does not tell its gauges" in caplog.text


def test_a_store_that_does_not_answer_holds_up_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "STORE_SECONDS", 0.02)
    answer = threading.Event()
    asked = []

    class Stuck(Everything):
        def stored(self) -> Mapping[str, float]:
            asked.append(1)
            answer.wait(30)
            return super().stored()

    told = Metrics(Stuck())
    assert [values(told)["kms_store_up"] for _ in range(3)] == [0, 0, 0]
    assert len(asked) == 1  # no thread piles up
    answer.set()
    monkeypatch.setattr(metrics, "STORE_SECONDS", 10)
    assert values(told)["kms_log_position"] == 1


def test_how_a_dead_worker_was_is_forgotten_and_what_it_counted_is_not(tmp_path: Path) -> None:
    _reserve(tmp_path)
    mine = set(tmp_path.iterdir())
    assert len(mine) == 4
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size > 0 for path in mine)
    dead = 2**22 + 1  # more than a process id can be
    for name in ("counter", "gauge_livesum", "gauge_livemax"):
        (tmp_path / f"{name}_{dead}.db").touch()
    _forget_the_dead(tmp_path)
    assert set(tmp_path.iterdir()) == mine | {tmp_path / f"counter_{dead}.db"}


@pytest.fixture
def counted() -> Any:
    before = counts.counted()
    return lambda: {key: number - before.get(key, 0) for key, number in counts.counted().items() if number != before.get(key, 0)}


def test_counting(counted: Any) -> None:
    for _ in range(2):
        counts.count("what", "kind")
    counts.count("what")
    assert counted() == {("what", ("kind",)): 2, ("what", ()): 1}
    for key in counted():
        del counts._numbers[key]
