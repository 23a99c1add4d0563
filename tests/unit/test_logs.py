"""What a line of the log says, in both formats, and what it never says."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmscore import logs
from kmscore.asked import ASKED, Asked
from kmscore.config import Settings, load_settings
from kmscore.errors import KmsError, SetupError
from kmscore.logs import log_fault, told

LOG = logging.getLogger("kmscore")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    kept = root.handlers[:], root.level, LOG.level, logs.access_log.level
    yield
    root.handlers[:] = kept[0]
    for logger, level in zip((root, LOG, logs.access_log), kept[1:], strict=True):
        logger.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def configure(**more: Any) -> None:
    logs.configure(Settings(Path("home"), **more))


def test_a_json_line_holds_what_is_known_of_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="json", log_level="INFO")
    token = ASKED.set(Asked("acs:ram::1:user/eve", "request-1", "CreateKey"))
    try:
        LOG.info("key %s:\n%s", "key-1", "x", extra=told(key_id="key-1", code="", events=["KeyCreated"]))
    finally:
        ASKED.reset(token)
    LOG.debug("not heard")
    (line,) = lines(capsys)
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert isinstance(record.pop("process"), int)
    assert record == {
        "level": "INFO",
        "logger": "kmscore",
        "message": "key key-1:\nx",
        "request_id": "request-1",
        "operation": "CreateKey",
        "caller": "acs:ram::1:user/eve",
        "key_id": "key-1",
        "events": ["KeyCreated"],
    }


def test_a_text_line_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    LOG.warning("a\nb\x1b[1m", extra=told(key_id="key-1", reason='two words\n"', events=["A", "B"]))
    (line,) = lines(capsys)
    assert line.partition(" ")[2] == 'WARNING a\\x0ab\\x1b[1m key_id=key-1 reason="two words\\n\\"" events=A,B'


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_fault_is_told_by_its_place_and_never_by_its_text(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure(log_format=log_format)
    secret = RuntimeError("a secret")
    try:
        raise secret
    except RuntimeError as error:
        log_fault("request", error, request_id="r")
        logging.getLogger("some.library").exception("it failed")
    text = capsys.readouterr().err
    assert "a secret" not in text
    assert "Traceback" not in text
    assert text.count("test_a_fault_is_told_by_its_place") == 2
    assert "unexpected RuntimeError" in text


def test_a_refusal_tells_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="json")
    log_fault("not healthy", KmsError("ServiceUnavailableTemporary", "the store cannot read"))
    (line,) = lines(capsys)
    assert (json.loads(line)["code"], json.loads(line)["level"]) == ("ServiceUnavailableTemporary", "WARNING")


def test_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_level="DEBUG")
    logging.getLogger("urllib3").debug("GET /?Plaintext=x")
    LOG.debug("heard")
    (line,) = lines(capsys)
    assert line.endswith("DEBUG heard")


def test_the_access_log_is_apart_from_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_level="ERROR", access_log=True)
    logs.access_log.info("Encrypt OK")
    configure(log_level="INFO")
    logs.access_log.info("Encrypt OK")
    assert len(lines(capsys)) == 1


def test_settings_of_the_log(tmp_path: Path) -> None:
    environment = {"KMS_LOG_FORMAT": "json", "KMS_LOG_LEVEL": "INFO", "KMS_ACCESS_LOG": "1", "KMS_PKCS11_MODULE": "none"}
    settings = load_settings(tmp_path, environment)
    assert (settings.log_format, settings.log_level, settings.access_log) == ("json", "INFO", True)
    for name, value in (("KMS_LOG_FORMAT", "xml"), ("KMS_LOG_LEVEL", "info")):
        with pytest.raises(SetupError, match="is one of"):
            load_settings(tmp_path, environment | {name: value})
