"""Writes docs/API.md's tables and docs/openapi.json from the table of operations: `python -m kmscore.operations.reference`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kmscore import __version__
from kmscore.errors import CODES
from kmscore.operations.kinds import REPEATED, Kind, Operation, Param
from kmscore.operations.notes import NOTES
from kmscore.operations.shapes import SHAPES
from kmscore.operations.table import GROUPS, OPERATIONS, UNOFFERED

API_VERSION = "2016-01-20"
_PARTS = {Kind.NUMBERED: (".N",), Kind.NUMBERED_TAGS: (".N.Key", ".N.Value"), Kind.NUMBERED_TAG_FILTERS: (".N.Key", ".N.Value")}


# --- docs/API.md -------------------------------------------------------------------------------------------------------------------


def with_tables(text: str) -> str:
    """The page, with what stands between its marks made anew."""
    for mark, rows in (("operations", operation_rows()), ("codes", code_rows()), ("unoffered", unoffered_rows())):
        begin, end = f"<!-- {mark}: made by kmscore.operations.reference -->", f"<!-- end of {mark} -->"
        made = "\n".join((begin, "", *rows, "", end))
        text, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, made=made: made, text, flags=re.DOTALL)  # type: ignore[misc]
        assert count == 1, mark
    return text


def operation_rows() -> Iterator[str]:
    for group, title in GROUPS.items():
        yield from (f"### {title}", "", "| operation | parameters | notes |", "|---|---|---|")
        for operation in OPERATIONS.values():
            if operation.group == group:
                name = f"**`{operation.name}`**" if operation.extension else f"`{operation.name}`"
                note = NOTES.get(operation.name, "")
                if operation.action != f"kms:{operation.name}":
                    note = f"{note}{'. ' if note else ''}In policies: `{operation.action}`"
                yield f"| {name} | {', '.join(_spellings(operation))} | {note + ' ' if note else ''}|"
        yield ""


def _spellings(operation: Operation) -> Iterator[str]:
    for param in operation.params:
        if param.kind is not Kind.UNOFFERED:
            for part in _PARTS.get(param.kind, ("",)):
                yield f"{param.name}{part}{'*' if param.required and part != '.N.Value' else ''}"


def code_rows() -> Iterator[str]:
    yield from ("| code | HTTP | when |", "|---|---|---|")
    for name, code in sorted(CODES.items()):
        yield f"| `{name}` | {code.status} | {code.when}{'; may pass' if code.retryable else ''} |"


def unoffered_rows() -> Iterator[str]:
    yield ", ".join(f"`{name}`" for name in sorted(UNOFFERED))


# --- OpenAPI -----------------------------------------------------------------------------------------------------------------------


def openapi() -> dict[str, Any]:
    """OpenAPI 3.1. Every operation is a call on `/`; the fragment makes its path one of its own, the parameter Action names it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kmscore",
            "version": __version__,
            "description": "Alibaba Cloud KMS 2016-01-20 over HTTP. Parameters stand in the query, in a form body, or some in each.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8480"}],
        "security": [{"AccessKey": []}],
        "tags": [{"name": group, "description": title} for group, title in GROUPS.items()],
        "paths": {f"/#Action={operation.name}": {"post": _described(operation)} for operation in OPERATIONS.values()},
        "components": {
            "securitySchemes": {
                "AccessKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "ACS3-HMAC-SHA256 or ACS4-HMAC-SHA256; RPC V1 (HMAC-SHA1) signs by parameters instead.",
                }
            },
            "responses": {
                "Refused": {
                    "description": "The call was refused; nothing was changed.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": {
                        "RequestId": {"type": "string"},
                        "HttpStatus": {"type": "integer"},
                        "Code": {"type": "string", "enum": sorted(CODES)},
                        "Message": {"type": "string"},
                        "HostId": {"type": "string"},
                    },
                    "required": ["RequestId", "HttpStatus", "Code", "Message", "HostId"],
                }
            },
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.help,
        "tags": [operation.group],
        "parameters": [
            _fixed("Action", operation.name),
            _fixed("Version", API_VERSION),
            *(item for param in operation.params if param.kind is not Kind.UNOFFERED for item in _parameters(param)),
        ],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": _answer(operation)}}},
            "default": {"$ref": "#/components/responses/Refused"},
        },
    }
    if operation.extension:
        told["x-extension"] = True
    return told


def _answer(operation: Operation) -> dict[str, Any]:
    """The shape of the answer; `?` behind a name says that it may be absent."""

    def schema(shape: Any) -> dict[str, Any]:
        if isinstance(shape, str):
            return {"type": shape}
        if isinstance(shape, list):
            return {"type": "array", "items": schema(shape[0])}
        properties = {name.rstrip("?"): schema(inner) for name, inner in shape.items()}
        required = [name for name in shape if not name.endswith("?")]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return schema({**SHAPES[operation.answer.__name__], "RequestId": "string"})


def _fixed(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": True, "schema": {"type": "string", "enum": [value]}}


def _parameters(param: Param) -> Iterator[dict[str, Any]]:
    for part in _PARTS.get(param.kind, ("",)):
        yield {
            "name": f"{param.name}{part}".replace(".N", ".1"),
            "in": "query",
            "required": param.required and part != ".N.Value",
            "description": param.help,
            "schema": _schema(param),
        }


def _schema(param: Param) -> dict[str, Any]:
    if param.kind is Kind.INTEGER:
        bounds = {"minimum": param.minimum, "maximum": param.maximum}
        return {"type": "integer", **{name: value for name, value in bounds.items() if value is not None}}
    if param.kind in (Kind.BOOLEAN, Kind.DRY_RUN):
        return {"type": "boolean"}
    told: dict[str, Any] = {"type": "string"}
    if param.choices:
        told["enum"] = [str(choice) for choice in param.choices]
    if param.kind in (Kind.BLOB, Kind.BYTES):
        told["contentEncoding"] = "base64"
    if param.kind in (Kind.CONTEXT, Kind.TAGS, Kind.FILTERS, Kind.BLOBS, Kind.STRINGS):
        told["contentMediaType"] = "application/json"
    if param.maximum is not None and param.kind not in REPEATED and param.kind in (Kind.STRING, Kind.TEXT, Kind.CONTEXT):
        told["maxLength"] = param.maximum
    return told


def main() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = docs / "API.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    (docs / "openapi.json").write_text(json.dumps(openapi(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
