"""Signed requests with one change each: none may be accepted as another. Changes without a meaning, and genuine requests, all are."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from wire_requests import ACCESS_KEY, SCHEMES, Gate, Message, genuine, sdk_messages, written

from kmscore.api.nonces import Nonces
from kmscore.api.params import decode_params
from kmscore.api.request import Request
from kmscore.errors import KmsError

Change = Callable[[Message, random.Random], None]

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


# --- changes -----------------------------------------------------------------------------------------------------------------------


def _byte(text: bytes, rng: random.Random, alphabet: bytes = bytes(range(0x21, 0x7F))) -> bytes:
    """One byte flipped, added, dropped or swapped with its neighbour."""
    at = rng.randrange(len(text) + 1)
    how = rng.randrange(4)
    new = bytes([rng.choice(alphabet)])
    if how == 0 or at == len(text):
        return text[:at] + new + text[at:]
    if how == 1:
        return text[:at] + text[at + 1 :]
    if how == 2:
        return text[:at] + new + text[at + 1 :]
    return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]


def _in_params(change: Callable[[bytes, random.Random], bytes]) -> Change:
    """In the query or in the form."""

    def changed(message: Message, rng: random.Random) -> None:
        if message.body and rng.random() < 0.5:
            message.body = change(message.body, rng)
        else:
            message.query = change(message.query, rng)

    return changed


def _items(change: Callable[[list[tuple[str, str]], random.Random], None]) -> Change:
    """Of decoded parameters, written anew."""

    def apply(text: bytes, rng: random.Random) -> bytes:
        items = list(decode_params(text).items())
        change(items, rng)
        return b"&".join(written(dict([item]), rng) for item in items)

    return _in_params(apply)


def _added(items: list[tuple[str, str]], rng: random.Random) -> None:
    items.insert(rng.randrange(len(items) + 1), (rng.choice(("DryRun", "Extra", "action", "KeyId2", "\u212a")), rng.choice(("", "1", "é"))))


def _removed(items: list[tuple[str, str]], rng: random.Random) -> None:
    if items:
        del items[rng.randrange(len(items))]


def _renamed(items: list[tuple[str, str]], rng: random.Random) -> None:
    if items:
        at = rng.randrange(len(items))
        name, value = items[at]
        items[at] = (rng.choice((name.swapcase(), f"{name} ", f" {name}", f"{name}\x00", name[::-1], f"{name}.1")), value)


def _swapped(items: list[tuple[str, str]], rng: random.Random) -> None:
    """Two values change places, or a name with its value."""
    at, other = (rng.randrange(len(items)) for _ in range(2)) if items else (0, 0)
    if at == other and items:
        items[at] = items[at][::-1]
    elif items:
        items[at], items[other] = (items[at][0], items[other][1]), (items[other][0], items[at][1])


def _revalued(items: list[tuple[str, str]], rng: random.Random) -> None:
    if items:
        at = rng.randrange(len(items))
        name, value = items[at]
        others = (
            f"{value} ",
            f" {value}",
            f"{value}\n",
            f"{value}&x=y",
            value[:-1],
            value.swapcase(),
            f"{value}=",
            value * 2,
            f"{value}\u0301",
        )
        items[at] = (name, rng.choice(others))


def _twice(text: bytes, rng: random.Random) -> bytes:
    parts = text.split(b"&")
    return b"&".join([*parts, rng.choice(parts)])


def _escape(text: bytes, rng: random.Random) -> bytes:
    """One escape that means something else, or nothing."""
    found = list(re.finditer(rb"%[0-9A-Fa-f]{2}", text))
    if not found:
        return text + b"%25"
    one = rng.choice(found)
    other = rng.choice((b"%%%02X" % rng.randrange(256), b"%25" + one[0][1:], one[0][:2], b"%", one[0] * 2, b"+", b"%C0%80", b"%ED%A0%80"))
    return text[: one.start()] + other + text[one.end() :]


def _moved(message: Message, rng: random.Random) -> None:
    """A parameter goes from the query to the form or back; V1 signs both as one."""
    if message.kind.startswith(("V1", "SDK V1", "SDK old")) or not message.query or not message.body:
        _in_params(_byte)(message, rng)
        return
    parts = message.query.split(b"&")
    part = parts.pop(rng.randrange(len(parts)))
    message.query, message.body = b"&".join(parts), message.body + b"&" + part


def _method(message: Message, rng: random.Random) -> None:
    message.method = (
        "GET" if message.method == "POST" and rng.random() < 0.7 else rng.choice(("POST", "PUT", "get", "HEAD", "post", "DELETE"))
    )


def _body(message: Message, rng: random.Random) -> None:
    message.body = _byte(message.body, rng) if message.body else rng.choice((b"a=b", b"Extra=", b"x"))
    if rng.random() < 0.5 and not message.header(b"content-type"):
        message.headers.append((b"content-type", b"application/x-www-form-urlencoded"))


SIGNED = (b"host", b"x-acs-action", b"x-acs-content-sha256", b"x-acs-date", b"x-acs-signature-nonce", b"x-acs-version")


def _signed_header(message: Message, rng: random.Random) -> bytes:
    listed = re.search(rb"SignedHeaders=([^,]+)", message.header(b"authorization"))
    assert listed
    return rng.choice(listed[1].split(b";"))


def _header_value(message: Message, rng: random.Random) -> None:
    name = _signed_header(message, rng)
    message.set_header(name, _byte(message.header(name), rng))


def _header_removed(message: Message, rng: random.Random) -> None:
    name = _signed_header(message, rng)
    message.headers = [item for item in message.headers if item[0] != name]


def _header_renamed(message: Message, rng: random.Random) -> None:
    name = _signed_header(message, rng)
    message.headers = [(b"x-" + each if each == name else each, value) for each, value in message.headers]


def _header_twice(message: Message, rng: random.Random) -> None:
    name = _signed_header(message, rng)
    message.headers.insert(rng.randrange(len(message.headers) + 1), (name, rng.choice((b"", b"other", message.header(name)))))


def _values_swapped(message: Message, rng: random.Random) -> None:
    first, second = rng.sample(SIGNED, 2)
    one, two = message.header(first), message.header(second)
    message.set_header(first, two)
    message.set_header(second, one)


def _action(message: Message, rng: random.Random) -> None:
    message.set_header(
        b"x-acs-action", rng.choice((b"ScheduleKeyDeletion", b"encrypt", b"", message.header(b"x-acs-action") + b"\xc2\xa0x"))
    )


def _version(message: Message, rng: random.Random) -> None:
    message.set_header(b"x-acs-version", rng.choice((b"2016-01-21", b"", b"2016-01-2", b"2016-01-20, 2016-01-20")))


def _date(message: Message, rng: random.Random) -> None:
    value = message.header(b"x-acs-date")
    message.set_header(
        b"x-acs-date", rng.choice((value[:-2] + b"%dZ" % ((int(value[-2:-1]) + 1) % 10), value[:-1], value.lower(), b"", value + b"+00:00"))
    )


def _nonce(message: Message, rng: random.Random) -> None:
    value = message.header(b"x-acs-signature-nonce")
    message.set_header(b"x-acs-signature-nonce", rng.choice((value[:-1], value.upper() + b"x", b"", value + b"\xc2\xa0.", b"0" + value)))


def _nonce_removed(message: Message, rng: random.Random) -> None:
    message.headers = [item for item in message.headers if item[0] != b"x-acs-signature-nonce"]
    if rng.random() < 0.5:
        message.set_header(b"authorization", message.header(b"authorization").replace(b"x-acs-signature-nonce;", b""))


def _unsigned(message: Message, rng: random.Random) -> None:
    """A header is left out of the signed ones, so that it could be changed."""
    name = _signed_header(message, rng)
    value = message.header(b"authorization")
    message.set_header(b"authorization", re.sub(rb"(?<==|;)" + name + rb";|;" + name + rb"(?=,)", b"", value, count=1))


def _list(message: Message, rng: random.Random) -> None:
    listed = re.search(rb"SignedHeaders=([^,]+)", message.header(b"authorization"))
    assert listed
    names = listed[1].split(b";")
    other = rng.choice(
        (names[::-1], [*names, b"zz"], [*names, names[-1]], [b"accept-charset", *names], [names[0].upper(), *names[1:]], [b"", *names])
    )
    message.set_header(b"authorization", message.header(b"authorization").replace(listed[1], b";".join(other)))


def _authorization(field: bytes) -> Change:
    """One byte of a field of the Authorization header."""

    def changed(message: Message, rng: random.Random) -> None:
        value = message.header(b"authorization")
        match = re.search(field, value)
        assert match
        at = rng.randrange(len(match[1]))
        old = match[1][at : at + 1]
        new = rng.choice([c for c in (b"0", b"7", b"a", b"f", b"Z", b"/", b"") if c != old])
        start = match.start(1) + at
        message.set_header(b"authorization", value[:start] + new + value[start + 1 :])

    return changed


def _authorization_shape(message: Message, rng: random.Random) -> None:
    value = message.header(b"authorization")
    others = (
        value.replace(b"ACS3", b"ACS4") if b"ACS3" in value else value.replace(b"ACS4-", b"ACS3-"),
        value.replace(b"HMAC-SHA256", rng.choice((b"HMAC-SM3", b"RSA-SHA256", b"HMAC-SHA1"))),
        value + b",",
        value + b",Signature=" + b"0" * 64,
        value.replace(b"Signature=", b"signature="),
        value.rpartition(b"=")[0] + b"=" + value.rpartition(b"=")[2].upper().replace(b"0", b"O"),
        value[:-1],
        b"",
        value.replace(b"Credential=", b"Credential=x,Credential="),
    )
    message.set_header(b"authorization", rng.choice(others))


def _two_schemes(message: Message, rng: random.Random) -> None:
    message.query += b"&Signature=x" if message.query else b"Signature=x"


def _v1_named(name: bytes, values: tuple[bytes, ...]) -> Change:
    def changed(message: Message, rng: random.Random) -> None:
        pattern, new = rb"(?<![^&])" + name + rb"=[^&]*", name + b"=" + rng.choice(values)
        message.query, message.body = re.sub(pattern, new, message.query), re.sub(pattern, new, message.body)

    return changed


def _v1_signature(message: Message, rng: random.Random) -> None:
    def flip(match: re.Match[bytes]) -> bytes:
        at = rng.randrange(26)  # the last letter has bits that say nothing
        text = match[1].replace(b"%2B", b"+").replace(b"%2b", b"+").replace(b"%2F", b"/").replace(b"%2f", b"/")
        new = rng.choice([c for c in b"ABCxyz019" if c != text[at]])
        return b"Signature=" + (text[:at] + bytes([new]) + text[at + 1 :]).replace(b"+", b"%2B")

    pattern = rb"(?<![^&])Signature=([^&]*)"
    message.query, message.body = re.sub(pattern, flip, message.query), re.sub(pattern, flip, message.body)


ANY: list[Change] = [
    *(_in_params(_byte),) * 3,
    *(_items(change) for change in (_added, _removed, _renamed, _swapped, _revalued)),
    _in_params(_twice),
    *(_in_params(_escape),) * 2,
    _moved,
    _method,
    _body,
]
BY_HEADER: list[Change] = [
    _header_value,
    _header_value,
    _header_removed,
    _header_renamed,
    _header_twice,
    _values_swapped,
    _action,
    _version,
    _date,
    _nonce,
    _nonce_removed,
    _unsigned,
    _list,
    _authorization(rb"Credential=([^,]+)"),
    _authorization(rb"SignedHeaders=([^,]+)"),
    _authorization(rb"Signature=([^,]+)"),
    _authorization_shape,
    _two_schemes,
]
ACS4_ONLY: list[Change] = [_authorization(rf"{ACCESS_KEY}(/[^,]+)".encode())] * 3
BY_PARAMETER: list[Change] = [
    _v1_signature,
    _v1_signature,
    _v1_named(b"Action", (b"Decrypt2", b"encrypt", b"")),
    _v1_named(b"Version", (b"2016-01-21", b"")),
    _v1_named(b"SignatureNonce", (b"", b"0", b"another")),
    _v1_named(b"Timestamp", (b"", b"2024-01-02T03%3A04%3A05Z", b"now")),
    _v1_named(b"AccessKeyId", (b"", b"other", ACCESS_KEY.lower().encode())),
    _v1_named(b"SignatureMethod", (b"HMAC-SHA256", b"", b"none")),
    _v1_named(b"SignatureVersion", (b"2.0", b"")),
    _v1_named(b"SignatureType", (b"BEARERTOKEN", b"x")),
]


def changes_of(message: Message) -> list[Change]:
    if not message.header(b"authorization"):
        return ANY + BY_PARAMETER
    return ANY + BY_HEADER + (ACS4_ONLY if b"ACS4" in message.header(b"authorization") else [])


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
