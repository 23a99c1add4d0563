"""Changes to signed requests, one at a time, that a canonical form must tell apart: what test_wire_mutations.py makes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from wire_requests import ACCESS_KEY, Message, written

from kmscore.api.params import decode_params

Change = Callable[[Message, random.Random], None]


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
