"""Query strings and form bodies -> parameters. Strict: whatever could be read in two ways is refused, never guessed.

Nothing is signed or checked from the raw text: clients write spaces and reserved characters differently (WIRE section 3).
"""

from __future__ import annotations

from kmscore._percent import decode
from kmscore.errors import KmsError

FORM = "application/x-www-form-urlencoded"
MAX_PARAMETERS = 512


def decode_params(text: bytes) -> dict[str, str]:
    """`a=1&b=2`, with %XX and + for a space, as names and values. Empty text: none.

    Raises ParseRequestParameterException for a part without `=` or without a name, a name given twice, a broken escape, bytes that are
    not UTF-8, or more than 512 parameters.
    """
    params: dict[str, str] = {}
    if not text:
        return params
    parts = text.split(b"&", MAX_PARAMETERS)
    if len(parts) > MAX_PARAMETERS:
        raise unreadable(f"there are more than {MAX_PARAMETERS} parameters")
    for part in parts:
        name, equals, value = part.partition(b"=")
        if not equals or not name:
            raise unreadable("a parameter has no name or no '='")
        decoded = _decode(name)
        if decoded in params:
            raise unreadable("a parameter is given twice")
        params[decoded] = _decode(value)
    return params


def merge(query: dict[str, str], form: dict[str, str]) -> dict[str, str]:
    """Parameters of query and form together; one that stands in both is refused."""
    if not form:
        return query
    if not query.keys().isdisjoint(form):
        raise unreadable("a parameter is given twice")
    return query | form


def unreadable(why: str) -> KmsError:
    return KmsError("ParseRequestParameterException", f"The request parameters cannot be read: {why}.")


def _decode(text: bytes) -> str:
    try:
        return decode(text)
    except UnicodeDecodeError:
        raise unreadable("they are not UTF-8") from None
    except ValueError as error:
        raise unreadable(str(error)) from None
