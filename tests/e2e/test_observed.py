"""What a running service tells of itself: metrics of all its workers, lines of the log, spans to a collector, also at its end."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from collector import collector
from command import Command
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from test_serve import service
from test_serve_workers import asked, children, until
from wire import Wire


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def spans(bodies: list[bytes]) -> list[tuple[dict[str, Any], Any]]:
    """(resource, span) of all that came."""
    found = []
    for body in bodies:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {attribute.key: attribute.value.string_value for attribute in group.resource.attributes}
            found += [(resource, span) for scope in group.scope_spans for span in scope.spans]
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_tells_of_itself(fresh: Command, tmp_path: Path, workers: int, pytestconfig: pytest.Config) -> None:
    errors = tmp_path / "errors"
    with collector() as (environment, bodies), errors.open("wb") as stderr:
        fresh.settings |= environment | {"KMS_LOG_FORMAT": "json", "KMS_LOG_LEVEL": "INFO", "KMS_ACCESS_LOG": "1"}
        with service(fresh, "--workers", str(workers), stderr=stderr) as (parent, url):
            if workers > 1:
                until(lambda: len(children(parent.pid)) == workers)
            with closing(Wire.of(url, fresh.home)) as wire:
                key = wire.call("CreateKey", ProtectionLevel="HSM")["KeyMetadata"]["KeyId"]
                wire.call("CreateAlias", KeyId=key, AliasName="alias/a")
                wire.call("Encrypt", KeyId="alias/a", Plaintext="x")
                wire.call("DisableKey", KeyId=key)
                wire.code("Encrypt", KeyId="not a key's name", Plaintext="x")
            asked(url, fresh.home, 10)
            time.sleep(1.2 if workers > 1 else 0)  # what the other workers say of themselves is a second old at most
            found = metrics(url)
            assert found["kms_processes"] == workers
            assert found["kms_process_resident_memory_bytes"] > workers * 10e6
            assert time.time() - 60 < found["kms_process_start_time_seconds"] < time.time() + 1
            assert found["kms_token_sessions"] >= workers
            assert found["kms_key_loads_total HSM OK"] == 1
            assert found["kms_store_up"] == 1
            assert found["kms_log_position"] >= 4
            on_postgres = pytestconfig.getoption("--store") == "postgresql"
            assert (0 <= found["kms_lease_age_seconds"] < 5) if on_postgres else ("kms_lease_age_seconds" not in found)
            if workers > 1:
                (at_work,) = re.findall(r'"process": (\d+), "message": "DisableKey OK"', errors.read_text())  # tells its spans at its end
                victim = next(iter(children(parent.pid) - {int(at_work)}))
                os.kill(victim, signal.SIGKILL)
                until(lambda: len(children(parent.pid) - {victim}) == workers)
                until(lambda: metrics(url)["kms_processes"] == workers)  # it is not counted any more
                asked(url, fresh.home, 10)
            parent.send_signal(signal.SIGTERM)
            assert parent.wait(30) == 0
    records = [json.loads(line) for line in errors.read_text().splitlines() if not line.startswith("made a new home")]
    access = [record for record in records if record["logger"] == "kmscore.access"]
    first = [(record["operation"], record["code"], record["status"], record.get("key_id")) for record in access[:5]]
    assert first == [
        ("CreateKey", "OK", 200, key),
        ("CreateAlias", "OK", 200, key),
        ("Encrypt", "OK", 200, key),
        ("DisableKey", "OK", 200, key),
        ("Encrypt", "Forbidden.KeyNotFound", 404, None),
    ]
    assert all(record["duration_ms"] > 0 and len(record["request_id"]) == 36 and record["access_key_id"] for record in access[:5])
    changes = {record["request_id"]: record for record in records if record.get("events") == ["KeyDisabled"]}
    change = changes[access[3]["request_id"]]
    assert (change["operation"], change["key_id"], change["caller"].rpartition(":")[2]) == ("DisableKey", key, "root")
    told = spans(bodies)
    doors = {span.name: span for _, span in told if span.kind == span.SPAN_KIND_SERVER}
    assert {"CreateKey", "Encrypt", "DisableKey", "ListKeys"} <= set(doors)
    assert doors["DisableKey"].trace_id.hex() == change["trace_id"]
    assert {resource["service.name"] for resource, _ in told} == {"kmscore"}
    assert len({resource["service.instance.id"] for resource, span in told if span.name == "ListKeys"}) >= 1
    parts = {span.name for _, span in told if span.trace_id == doors["CreateKey"].trace_id}
    assert parts == {"CreateKey", "store.append", "store.read", "custody.generate"}


@pytest.mark.slow
def test_a_collector_that_is_away_keeps_no_service_from_ending(kms: Command) -> None:
    kms.settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    try:
        with service(kms) as (parent, url):
            asked(url, kms.home, 1)
            parent.send_signal(signal.SIGTERM)
            _, errors = parent.communicate(timeout=20)
            assert parent.returncode == 0
            assert b"Traceback" not in errors
    finally:
        del kms.settings["OTEL_EXPORTER_OTLP_ENDPOINT"]
