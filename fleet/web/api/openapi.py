"""The description of the API (OpenAPI 3.1), made of the operations and their types."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import msgspec

from fleet.documents import ErrorDocument
from fleet.web.api.operation import Operation, Parameter
from fleet.web.api.operations import OPERATIONS

_ERRORS = {
    "400": "The request cannot be read; the message says what is wrong and where.",
    "401": "Nobody says who asks, or the token or session does not hold any more.",
    "403": "The role of the account does not permit it.",
    "404": "There is no such thing.",
    "409": "It is in no state for it.",
    "412": "It has changed since `If-Match` was read.",
    "422": "The bundle is refused, or the `Idempotency-Key` was used for another request.",
    "503": "The database or the repository is away; try again after `Retry-After`.",
}


def describe_api() -> dict[str, Any]:
    """The document."""
    types = [each.reply for each in OPERATIONS] + [each.body for each in OPERATIONS if each.body is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorDocument], ref_template="#/components/schemas/{name}"
    )
    of = dict(zip([*types, ErrorDocument], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, of)
    paths["/api/v1/stream"] = {"get": _stream(of)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Edge Bundle fleet",
            "version": importlib.metadata.version("edge-bundle"),
            "description": "Devices, bundles, rollouts and the audit log of `edge-fleet` (docs/FLEET.md).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "made by `edge-fleet user token`"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "edge-fleet",
                    "description": "of the console; changes need the header X-CSRF-Token, too",
                },
            },
        },
    }


def _operation(each: Operation, of: dict[Any, Any]) -> dict[str, Any]:
    parameters = [_parameter(one, "path") for one in each.parameters] + [_parameter(one, "query") for one in each.query]
    if each.changes:
        text = "sent again with the same key, within a day, nothing is changed again and the same is answered"
        parameters.append(_header("Idempotency-Key", text))
    if each.matches:
        parameters.append(_header("If-Match", "the `ETag` that was read: refused if it has changed since"))
    found: dict[str, Any] = {
        "operationId": each.name,
        "summary": each.summary,
        "description": f"Needs a role that permits it to {each.permission}.",
        "parameters": parameters,
        "responses": {str(each.status): _reply(each, of[each.reply])} | _failures(of),
    }
    if each.body is not None:
        content = {"application/json": {"schema": of[each.body]}}
        found["requestBody"] = {"required": each.body_required, "content": content}
    return found


def _reply(each: Operation, schema: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    if each.matches or each.name in ("show_rollout", "show_device"):
        found["headers"] = {"ETag": {"description": "for `If-Match`", "schema": {"type": "string"}}}
    return found


def _failures(of: dict[Any, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": of[ErrorDocument]}}
    return {code: {"description": text, "content": content} for code, text in _ERRORS.items()}


def _parameter(one: Parameter, where: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": one.kind}
    if one.kind == "integer":
        schema |= {"minimum": one.least, "maximum": one.most}
    if one.default is not None:
        schema["default"] = one.default
    return {"name": one.name, "in": where, "required": where == "path", "description": one.text, "schema": schema}


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}


def _stream(of: dict[Any, Any]) -> dict[str, Any]:
    return {
        "operationId": "stream",
        "summary": "What happens, as server-sent events: `audit`, `event`, `rollout`, `sample`, and `reset`",
        "description": "Needs a role that permits it to read. `reset`: more was missed than is kept, so look again.",
        "parameters": [
            _parameter(Parameter("device", "samples and events of this device"), "query"),
            _parameter(Parameter("rollout", "the state of this rollout", "integer"), "query"),
            _header("Last-Event-ID", "the last that was received: what came since is sent"),
        ],
        "responses": {
            "200": {"description": "Goes on.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **_failures(of),
        },
    }
