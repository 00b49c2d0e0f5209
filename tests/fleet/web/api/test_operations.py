"""The JSON API as programs use it: roles, ETags, idempotency, and every refusal in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from fleet import administration
from fleet.access.roles import Role, permissions
from fleet.documents import DeviceDetailDocument, DevicesDocument, ErrorDocument, PlanDocument, RolloutDetailDocument
from fleet.operations import Actor
from fleet.store import audit, outbox
from fleet.store.database import Database
from fleet.web.api.openapi import describe_api
from fleet.web.api.operations import OPERATIONS
from fleet.web.guard import MAX_BODY_BYTES
from tests.fleet.web.stage import HOST, SPEC, Clock, add_account, program, token_of

Ask = Callable[[str], TestClient]


def error_of(response: Any) -> Any:
    """Every refusal has this shape, and says what is wrong."""
    found = msgspec.json.decode(response.content, type=ErrorDocument).error
    assert found.code == response.status_code
    assert found.message
    return found


def start(program: TestClient, **changes: Any) -> int:
    response = program.post("/api/v1/rollouts", json=SPEC | changes)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/api/v1/rollouts/{response.json()['rollout']}"
    return int(response.json()["rollout"])


def test_the_description_is_valid_and_names_every_operation(console: TestClient) -> None:
    found = console.get("/api/v1/openapi.json").json()
    validate(found)
    assert found == json.loads(json.dumps(describe_api()))
    named = {each["operationId"] for path in found["paths"].values() for each in path.values()}
    assert named == {each.name for each in OPERATIONS} | {"stream"}


def test_devices_are_selected_and_paged(ask: Ask) -> None:
    viewer = ask("viewer")
    found = msgspec.json.decode(viewer.get("/api/v1/devices?limit=5").content, type=DevicesDocument)
    assert (len(found.devices), found.matching, found.known, found.online) == (5, 12, 12, 11)
    seen = [each.device for each in found.devices]
    after = found.next
    while after is not None:
        found = msgspec.json.decode(viewer.get(f"/api/v1/devices?limit=5&after={after}").content, type=DevicesDocument)
        seen += [each.device for each in found.devices]
        after = found.next
    assert seen == sorted(f"sim-{number}" for number in range(12))
    found = viewer.get("/api/v1/devices", params={"where": "site=oslo and online=false"}).json()
    assert [each["device"] for each in found["devices"]] == ["sim-0"]


def test_one_device_with_its_tag(ask: Ask, small: Database) -> None:
    operator = ask("operator")
    shown = operator.get("/api/v1/devices/sim-1")
    assert msgspec.json.decode(shown.content, type=DeviceDetailDocument).labels == {"site": "bergen"}
    tag = shown.headers["etag"]
    changed = operator.patch(
        "/api/v1/devices/sim-1", json={"labels": {"rack": "3"}, "pinned": True}, headers={"if-match": tag}
    )
    assert (changed.status_code, changed.json()["labels"], changed.json()["pinned"]) == (
        200, {"site": "bergen", "rack": "3"}, True
    )  # fmt: skip
    late = operator.patch("/api/v1/devices/sim-1", json={"pinned": False}, headers={"if-match": tag})
    assert error_of(late).type == "precondition_failed"
    assert operator.get("/api/v1/devices/sim-1").json()["pinned"] is True
    with small.read() as connection:
        (line,) = audit.entries(connection, subject="sim-1")
    assert (line.actor, line.action) == ("operator", "device.change")
    assert line.detail["via"].startswith("token ")


def test_a_plan_changes_nothing_and_is_what_starts(ask: Ask, small: Database) -> None:
    operator = ask("operator")
    plan = msgspec.json.decode(operator.post("/api/v1/rollouts/plan", json=SPEC).content, type=PlanDocument)
    assert operator.get("/api/v1/rollouts").json()["rollouts"] == []
    with small.read() as connection:
        assert outbox.current(connection) == {}
    number = start(operator)
    found = msgspec.json.decode(operator.get(f"/api/v1/rollouts/{number}").content, type=RolloutDetailDocument)
    planned = [(device, wave.number) for wave in plan.waves for device in wave.devices]
    assert sorted(planned) == sorted((target.device, target.wave) for target in found.targets)
    assert (found.state, found.created_by) == ("running", "operator")


def test_a_rollout_is_steered_by_its_tag(ask: Ask, small: Database) -> None:
    operator = ask("operator")
    number = start(operator)
    path = f"/api/v1/rollouts/{number}"
    tag = operator.get(path).headers["etag"]
    paused = operator.post(f"{path}/pause", headers={"if-match": tag})
    assert (paused.status_code, paused.json()["state"]) == (200, "paused")
    assert paused.headers["etag"] != tag
    late = operator.post(f"{path}/abort", headers={"if-match": tag})
    assert (late.status_code, error_of(late).field) == (412, "If-Match")
    assert operator.post(f"{path}/resume", headers={"if-match": "*"}).json()["state"] == "running"
    assert error_of(operator.post(f"{path}/resume")).code == 409
    assert operator.post(f"{path}/abort").json()["state"] == "aborted"
    assert error_of(operator.post(f"{path}/retry")).type == "conflict"
    with small.read() as connection:
        actions = [each.action for each in audit.entries(connection, subject=f"rollout {number}")]
        assert audit.verify(connection) > 4
    assert actions == ["rollout.start", "rollout.pause", "rollout.resume", "rollout.abort"]


def test_the_author_does_not_approve(ask: Ask, small: Database) -> None:
    add_account(small, "both", Role.OPERATOR, Role.APPROVER)
    both = ask("both")
    number = start(both, approval=True)
    path = f"/api/v1/rollouts/{number}/approve"
    assert "another person has to approve" in error_of(both.post(path)).message
    assert error_of(ask("operator").post(path)).type == "forbidden"
    assert both.get(f"/api/v1/rollouts/{number}").json()["state"] == "waiting_approval"
    done = ask("approver").post(path)
    assert (done.json()["state"], done.json()["approved_by"]) == ("running", "approver")


def test_the_same_request_again_changes_nothing_again(ask: Ask, small: Database, clock: Clock) -> None:
    operator = ask("operator")
    key = {"idempotency-key": "5f1c9a"}
    first = operator.post("/api/v1/rollouts", json=SPEC, headers=key)
    again = operator.post("/api/v1/rollouts", json=SPEC, headers=key)
    assert (first.status_code, first.content, first.headers["etag"]) == (
        again.status_code, again.content, again.headers["etag"]
    )  # fmt: skip
    assert len(operator.get("/api/v1/rollouts").json()["rollouts"]) == 1
    other = operator.post("/api/v1/rollouts", json=SPEC | {"where": "site=oslo"}, headers=key)
    assert error_of(other).field == "Idempotency-Key"
    # Another account's key is another key; after a day it is a new one.
    assert ask("admin").post("/api/v1/rollouts", json=SPEC, headers=key).json()["rollout"] == 2
    clock.now += 86401
    assert operator.post("/api/v1/rollouts", json=SPEC, headers=key).json()["rollout"] == 3
    with small.read() as connection:
        starts = [each for each in audit.entries(connection) if each.action == "rollout.start"]
    assert len(starts) == 3


def test_a_refused_request_is_not_kept_as_its_answer(ask: Ask) -> None:
    operator = ask("operator")
    number = start(operator)
    key = {"idempotency-key": "k"}
    path = f"/api/v1/rollouts/{number}"
    assert operator.post(f"{path}/resume", headers=key).status_code == 409
    operator.post(f"{path}/pause")
    assert operator.post(f"{path}/resume", headers=key).json()["state"] == "running"
    # What it says now is what it said then, though it is paused again.
    operator.post(f"{path}/pause")
    assert operator.post(f"{path}/resume", headers=key).json()["state"] == "running"
    assert operator.get(path).json()["state"] == "paused"


CALLS: dict[str, dict[str, Any]] = {
    "show_device": {"url": "/api/v1/devices/sim-1"},
    "change_device": {"url": "/api/v1/devices/sim-1", "json": {"pinned": True}},
    "device_series": {"url": "/api/v1/devices/sim-1/series"},
    "start_rollout": {"url": "/api/v1/rollouts", "json": SPEC},
    "plan_rollout": {"url": "/api/v1/rollouts/plan", "json": SPEC},
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_every_operation_asks_for_its_permission(
    operation: Any, ask: Ask, console: TestClient, small: Database
) -> None:
    number = start(ask("operator"))
    call = dict(CALLS.get(operation.name, {"url": operation.path.replace("{rollout}", str(number))}))

    def lines() -> int:
        with small.read() as connection:
            return len(audit.entries(connection))

    refused = TestClient(console.app, base_url=HOST).request(operation.method, **call)
    assert error_of(refused).type == "unauthorized"
    assert refused.headers["www-authenticate"].startswith("Bearer")
    for role in Role:
        program = ask(str(role))
        before = lines()
        response = program.request(operation.method, **call)
        if operation.permission in permissions([role]):
            # What is possible in this state is changed, with a line; what is not, and what only looks, without.
            assert response.status_code in (200, 201, 409), response.text
            assert lines() - before == int(operation.changes and response.status_code != 409)
        else:
            assert (response.status_code, error_of(response).type) == (403, "forbidden")
            assert lines() == before


@pytest.mark.parametrize(
    ("method", "url", "body", "status", "text"),
    [
        ("GET", "/api/v1/devices?where=sit=oslo", None, 400, "did you mean `site`?"),
        ("GET", "/api/v1/devices?limit=0", None, 400, "limit is a number from 1 to 500"),
        ("GET", "/api/v1/devices?limt=3", None, 400, "did you mean limit?"),
        ("GET", "/api/v1/devices/none", None, 404, "no device 'none' was heard yet"),
        ("GET", "/api/v1/rollouts/99", None, 404, "there is no rollout 99"),
        ("GET", f"/api/v1/rollouts/{10**25}", None, 404, f"there is no rollout {10**25}"),
        ("POST", f"/api/v1/rollouts/{10**25}/pause", {}, 404, f"there is no rollout {10**25}"),
        ("GET", "/api/v1/nothing", None, 404, "/api/v1/openapi.json"),
        ("POST", "/api/v1/rollouts", {"bundle": "model", "where": "*"}, 400, "is not NAME@VERSION"),
        ("POST", "/api/v1/rollouts", SPEC | {"where": "site=bodo"}, 400, "matches none of the 12 devices"),
        ("POST", "/api/v1/rollouts", SPEC | {"rollbak": "all"}, 400, "rollbak"),
        ("POST", "/api/v1/rollouts", SPEC | {"windows": [{"from": "25:00"}]}, 400, "windows[0]"),
        ("PATCH", "/api/v1/devices/sim-1", {"pined": True}, 400, "pined"),
        ("PATCH", "/api/v1/devices/sim-1", {"labels": {"a b": "1"}}, 400, "is not NAME=VALUE"),
        ("POST", "/api/v1/rollouts/1/resume", {"accept": 3}, 400, "accept"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_a_sentence(
    ask: Ask, method: str, url: str, body: Any, status: int, text: str
) -> None:
    admin = ask("admin")
    start(admin)
    response = admin.request(method, url, json=body)
    assert (response.status_code, text in error_of(response).message) == (status, True), response.text


def test_all_faults_of_a_specification_are_named(ask: Ask) -> None:
    response = ask("operator").post("/api/v1/rollouts", json=SPEC | {"rollback": "wav", "bake": "soon"})
    assert {each["field"] for each in response.json()["error"]["details"]} == {"rollback", "bake"}


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"bundle": "a@1", "bundle": "b@1"}', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"bundle=a", "application/x-www-form-urlencoded", 415),
        (b" " * (MAX_BODY_BYTES + 1), "application/json", 413),
    ],
)  # fmt: skip
def test_what_is_not_a_document_is_refused(ask: Ask, content: bytes, kind: str, status: int) -> None:
    response = ask("operator").post("/api/v1/rollouts", content=content, headers={"content-type": kind})
    assert response.status_code == status
    error_of(response)


def test_a_token_that_does_not_hold(ask: Ask, console: TestClient, small: Database, clock: Clock) -> None:
    for secret in ("", "eft_none", "x" * 300):
        assert program(console, secret).get("/api/v1/self").status_code == 401
    key = program(console, "ebk-a-key-of-the-gateway").get("/api/v1/self")
    assert "this is a key for the gateway" in error_of(key).message
    short = program(console, token_of(small, "viewer", expires=clock.now + 10))
    assert short.get("/api/v1/self").json() == {"account": "viewer", "roles": ["viewer"], "permissions": ["read"]}
    clock.now += 11
    assert short.get("/api/v1/self").status_code == 401
    kept = ask("viewer")
    assert kept.get("/api/v1/self").status_code == 200
    with small.write() as connection:
        administration.set_disabled(connection, "viewer", True, Actor("test"), clock.now)
    assert kept.get("/api/v1/self").status_code == 401


def test_a_database_that_is_away_is_said(ask: Ask, small: Database, tmp_path: Any) -> None:
    viewer = ask("viewer")
    small.close()
    (tmp_path / "fleet.db").write_bytes(b"not a database" * 100)
    for left in tmp_path.glob("fleet.db-*"):
        left.unlink()
    response = viewer.get("/api/v1/devices")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert error_of(response).type == "storage"
    (tmp_path / "fleet.db").unlink()


def test_another_host_is_not_answered(ask: Ask) -> None:
    response = ask("viewer").get("/api/v1/self", headers={"host": "evil.example"})
    assert (response.status_code, error_of(response).field) == (421, "Host")


def test_the_log_is_paged(ask: Ask) -> None:
    admin = ask("admin")
    for pinned in (True, False) * 3:
        admin.patch("/api/v1/devices/sim-1", json={"pinned": pinned})
    page = admin.get("/api/v1/audit?subject=sim-1&limit=4").json()
    rest = admin.get(f"/api/v1/audit?subject=sim-1&limit=4&before={page['next']}").json()
    numbers = [each["id"] for each in page["lines"] + rest["lines"]]
    assert (len(numbers), rest["next"], numbers) == (6, None, sorted(numbers, reverse=True))
