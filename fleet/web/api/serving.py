"""Answers requests with an operation: who asks, may they, what do they say, was it answered before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contract import strict_json
from contract.errors import BundleRefused, RequestInvalid
from contract.schema_faults import schema_faults
from fleet.access.secrets import KEY_PREFIX
from fleet.rollout.spec import MAX_SPEC_BYTES, SpecDocument
from fleet.store import idempotency
from fleet.store.idempotency import Answer
from fleet.web import guard
from fleet.web.api.operation import Call, Operation, Reply
from fleet.web.failures import describe_error, headers_of, status_of
from fleet.web.identity import Identity, identify
from fleet.web.settings import Settings

JSON = "application/json"


def make_route(operation: Operation, settings: Settings) -> Route:
    """Where ``operation`` is asked for."""

    async def endpoint(request: Request) -> Response:
        try:
            guard.check_host(request, settings.url)
            body = await guard.read_body(request)
            return await run_in_threadpool(_answer, operation, settings, request, body)
        except Exception as error:
            return failure(error)

    path = operation.path.replace("{rollout}", "{rollout:int}")
    return Route(path, endpoint, methods=[operation.method], name=operation.name)


def failure(error: Exception) -> Response:
    """``error`` as a program reads it."""
    content = msgspec.json.encode(describe_error(error))
    return Response(content, status_of(error), headers_of(error), JSON)


def authenticate(request: Request, settings: Settings) -> Identity:
    """Who asks.

    Raises:
        RequestInvalid: nobody says so.
    """
    found = identify(
        settings.database, request.headers, request.cookies, is_https=settings.is_https, now=settings.clock()
    )
    if found is None:
        hint = ""
        if request.headers.get("authorization", "").partition(" ")[2].strip().startswith(KEY_PREFIX):
            hint = f"; this is a key for the gateway ({KEY_PREFIX}…), which asks devices and may do nothing else"
        raise RequestInvalid(
            "say who asks: Authorization: Bearer with a token (`edge-fleet user token`), or a session of the console"
            + hint,
            code=401,
            kind="unauthorized",
        )
    return found


def _answer(operation: Operation, settings: Settings, request: Request, body: bytes) -> Response:
    identity = authenticate(request, settings)
    if operation.method not in guard.SAFE_METHODS and identity.session:
        guard.check_origin(request, settings.url)
        guard.check_csrf(identity.csrf, request.headers, {})
    identity.require(operation.permission)
    call = Call(
        settings=settings,
        identity=identity,
        path={each.name: request.path_params[each.name] for each in operation.parameters},
        query=operation.read_query(request.query_params),
        body=_read_body(operation, request.headers, body),
        if_match=request.headers.get("if-match"),
        now=settings.clock(),
    )
    found = execute(operation, call, request.headers.get("idempotency-key"), request.url.path, body)
    return Response(found.body, found.status, found.headers, JSON)


def _read_body(operation: Operation, headers: Mapping[str, str], body: bytes) -> Any:
    if operation.body is None:
        return None
    if not body and not operation.body_required:
        return operation.body()
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise RequestInvalid(f"send {JSON}, not {kind[:64] or 'nothing'!r}", code=415, field="Content-Type")
    try:
        document = strict_json.loads(body, max_bytes=MAX_SPEC_BYTES, what="the body")
    except BundleRefused as refused:
        raise RequestInvalid(refused.message, field=refused.field) from refused
    if not isinstance(document, dict):
        raise RequestInvalid("the body is an object")
    if operation.body is SpecDocument:
        # It is read with all that its types cannot say, and all faults are told at once.
        return document
    faults = tuple(schema_faults(document, operation.body))
    if faults:
        raise RequestInvalid(
            f"the body is not valid at {faults[0].field}: {faults[0].message}", field=faults[0].field, details=faults
        )
    return msgspec.convert(document, operation.body)


def execute(operation: Operation, call: Call, key: str | None, path: str, body: bytes) -> Answer:
    """Do it once, however often it is asked for with the same ``key``.

    Raises:
        EdgeBundleError: it is refused, or something is away; nothing was changed.
    """
    database = call.settings.database
    if not operation.changes:
        if key is not None:
            raise RequestInvalid("Idempotency-Key has no meaning here: nothing is changed", field="Idempotency-Key")
        call = structs.replace(call, prepared=operation.prepare(call))
        with database.read() as connection:
            return _as_answer(operation, operation.run(connection, call))
    request = idempotency.fingerprint(operation.method, path, body)
    if key is not None:
        with database.read() as connection:
            before = idempotency.answered(connection, call.identity.name, key, request=request, now=call.now)
        if before is not None:
            return before
    call = structs.replace(call, prepared=operation.prepare(call))
    with database.write() as connection:
        if key is not None:
            before = idempotency.answered(connection, call.identity.name, key, request=request, now=call.now)
            if before is not None:
                return before
        found = _as_answer(operation, operation.run(connection, call))
        if key is not None:
            idempotency.note(connection, call.identity.name, key, request=request, answer=found, now=call.now)
        return found


def _as_answer(operation: Operation, reply: Reply) -> Answer:
    headers = {"etag": reply.etag, "location": reply.location}
    return Answer(
        operation.status,
        {name: value for name, value in headers.items() if value is not None},
        msgspec.json.encode(reply.document),
    )
