"""How far in the log an answer is, and requests that ask to be answered from there on."""

from __future__ import annotations

import pytest
from command import Command
from wire import Wire, served

import kmscore
from kmscore import KmsError


def ask(wire: Wire, action: str, least: str, **params: str) -> tuple[str, int]:
    """(code, position) of an answer."""
    answer = wire.send(*wire.signed(action, params, x_kms_min_position=least))
    return answer.code, int(answer.headers.get("x-kms-position", "0"))


def test_a_request_is_answered_from_the_position_on_that_it_names(kms: Command) -> None:
    with served(kms) as wire:
        made = wire.ask("CreateKey", ProtectionLevel="SOFTWARE")
        key, position = made.body["KeyMetadata"]["KeyId"], int(made.headers["x-kms-position"])
        changed = wire.ask("DisableKey", KeyId=key)
        assert int(changed.headers["x-kms-position"]) == position + 1
        assert ask(wire, "ListKeys", str(position + 1)) == ("", position + 1)
        assert "x-kms-position" not in wire.ask("DescribeKey", KeyId=key).headers  # the way of microseconds
        assert ask(wire, "DescribeKey", str(position), KeyId=key)[0] == ""
        assert ask(wire, "ListKeys", str(position + 1000))[0] == "ServiceUnavailableTemporary"
        for wrong in ("-1", "1.0", "x", "", "9" * 30):
            assert ask(wire, "ListKeys", wrong)[0] == "InvalidParameter"


def test_an_engine_takes_in_what_another_process_wrote(kms: Command) -> None:
    with kmscore.open_kms(kms.home, ticker=False) as one, kmscore.open_kms(kms.home, ticker=False) as other:
        key = one.create_key().key_id
        other.be_at(one.position)
        assert other.position >= one.position
        assert other.describe_key(key).key_id == key
        with pytest.raises(KmsError, match="not yet seen"):
            other.be_at(one.position + 1)
