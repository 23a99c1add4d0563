"""Signed requests with one change each: none may be accepted as another. Changes without a meaning, and genuine requests, all are."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from wire_changes import changes_of
from wire_requests import ACCESS_KEY, SCHEMES, Gate, Message, genuine, sdk_messages, written

from kmscore.api.nonces import Nonces
from kmscore.api.params import decode_params
from kmscore.api.request import Request
from kmscore.errors import KmsError

# What a refusal of a changed request may say. Nothing else: above all no fault of ours.
REFUSALS = {
    "IncompleteSignature",
    "InvalidAccessKeyId.NotFound",
    "InvalidParameter",
    "InvalidSignatureMethod",
    "InvalidTimeStamp.Expired",
    "InvalidTimeStamp.Format",
    "MissingParameter",
    "ParseRequestParameterException",
    "SignatureDoesNotMatch",
    "UnsupportedHTTPMethod",
    "UnsupportedOperation",
}


def same(before: Request, after: Request) -> bool:
    """Whether two readings of a request differ in nothing that a signature covers. `+` and `%20`, or a case of hex digits, do not count."""
    if (before.method, before.params) != (after.method, after.params):
        return False
    if not before.authorization:
        return not after.authorization  # of a V1 request no header is signed, and query and form are one
    if (before.query, before.body_sha256) != (after.query, after.body_sha256):
        return False
    names = re.search(r"SignedHeaders=([^,]+)", before.authorization)
    assert names
    covered = [*names[1].split(";"), "authorization"]
    return [before.headers.get(name) for name in covered] == [after.headers.get(name) for name in covered]


# --- the tests ---------------------------------------------------------------------------------------------------------------------


def mutate(messages: list[Message], count: int, rng: random.Random, now: float) -> Counter[str]:
    """How often each refusal came. A change may leave what is read as it was; then it is made again, elsewhere."""
    gate = Gate(now)
    told: Counter[str] = Counter()
    while told.total() < count:
        message = rng.choice(messages)
        changed = message.copy()
        change = rng.choice(changes_of(message))
        change(changed, rng)
        try:
            after, _, _ = gate.let_in(changed)
        except KmsError as error:
            assert error.code in REFUSALS, (error, changed)
            if (changed.method, changed.query, changed.headers, changed.body) != (
                message.method,
                message.query,
                message.headers,
                message.body,
            ):
                told[error.code] += 1
            continue
        assert same(gate.let_in(message)[0], after), f"accepted: {changed}\nfrom:     {message}"
    return told


def campaign(genuine_count: int, mutated_count: int, sdk_rounds: int) -> None:
    rng = random.Random(20160120)
    gate = Gate()
    messages = sdk_messages(sdk_rounds)
    while len(messages) < genuine_count:
        messages.append(genuine(SCHEMES[len(messages) % len(SCHEMES)], rng, gate.now))
    actions = Counter(gate.let_in(message)[1] for message in messages)  # raises for one that is refused
    assert actions.total() >= genuine_count
    told = mutate(messages, mutated_count, rng, gate.now)
    assert told["SignatureDoesNotMatch"] > mutated_count / 4
    assert len(told) >= 6


def test_a_thousand_genuine_and_two_thousand_changed_requests() -> None:
    campaign(1000, 2000, 10)


@pytest.mark.slow
def test_ten_thousand_genuine_and_twenty_thousand_changed_requests() -> None:
    campaign(12_000, 20_000, 1700)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_change_of_every_scheme_is_refused(scheme: str) -> None:
    rng = random.Random(scheme)
    gate = Gate()
    message = genuine(scheme, rng, gate.now)
    for change in changes_of(message):
        refused = 0
        for _ in range(40):
            changed = message.copy()
            change(changed, rng)
            try:
                after, _, _ = gate.let_in(changed)
            except KmsError:
                refused += 1
            else:
                assert same(gate.let_in(message)[0], after), changed
        assert refused, change


@pytest.mark.parametrize("scheme", SCHEMES)
def test_changes_without_a_meaning_are_accepted(scheme: str) -> None:
    rng = random.Random(scheme)
    gate = Gate()
    for _ in range(20):
        message = genuine(scheme, rng, gate.now)
        before, action, nonce = gate.let_in(message)
        for _ in range(10):  # order of parameters, + or %20, hex digits of either case, reserved characters raw or not
            other = message.copy()
            other.query = written(decode_params(message.query), rng)
            if "ACS" not in scheme:
                other.body = written(decode_params(message.body), rng)
            rng.shuffle(other.headers)
            other.headers += [(b"x-forwarded-for", b"10.0.0.1"), (b"via", b"1.1 proxy"), (b"accept-encoding", b"gzip")]
            after, same_action, same_nonce = gate.let_in(other)
            assert same(before, after)
            assert (same_action, same_nonce) == (action, nonce)


WRITTEN = {
    "spaces as +": (b"v+1", b"v%201"),
    "lower-case escapes": (b"%2f%c3%a9", b"%2F%C3%A9"),
    "unreserved characters escaped": (b"%41%7E", b"A~"),
    "as node and aiohttp send them": (b"alias/a~*'()!:@$,;", b"alias%2Fa~%2A%27%28%29%21%3A%40%24%2C%3B"),
    "raw UTF-8": ("é".encode(), b"%C3%A9"),
    "= in a value": (b"SGVsbG8==", b"SGVsbG8%3D%3D"),
}


@pytest.mark.parametrize(("one", "other"), WRITTEN.values(), ids=list(WRITTEN))
def test_two_ways_to_write_the_same(one: bytes, other: bytes) -> None:
    assert decode_params(b"a=" + one) == decode_params(b"a=" + other)


@pytest.mark.parametrize("space", [b" ", b"\t", b"  \t", b"\xc2\xa0", b"\xe2\x80\x83", b"\x85", b"\xe3\x80\x80"])
@pytest.mark.parametrize("front", [False, True])
def test_white_space_around_a_header_makes_no_other_nonce(space: bytes, front: bool) -> None:
    """The canonical form has it not: a nonce, stamp or action that kept it would be another than was signed."""
    gate = Gate()
    message = genuine("ACS3", random.Random(1), gate.now)
    before, action, nonce = gate.let_in(message)
    for name in (b"x-acs-signature-nonce", b"x-acs-action", b"x-acs-date"):
        changed = message.copy()
        changed.set_header(name, space + message.header(name) if front else message.header(name) + space)
        after, same_action, same_nonce = gate.let_in(changed)
        assert same(before, after)
        assert (same_action, same_nonce) == (action, nonce)


def test_a_replay_is_refused_however_it_is_written(tmp_path: Path) -> None:
    gate = Gate()
    rng = random.Random(7)
    nonces = Nonces(tmp_path)
    for scheme in SCHEMES:
        message = genuine(scheme, rng, gate.now)
        _, _, nonce = gate.let_in(message)
        nonces.take(ACCESS_KEY, nonce)
        again = message.copy()
        again.query = written(decode_params(message.query), rng)
        with pytest.raises(KmsError, match="SignatureNonceUsed"):
            nonces.take(ACCESS_KEY, gate.let_in(again)[2])
