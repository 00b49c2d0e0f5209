"""docs/TROUBLESHOOTING.md has what a user can meet: every reason code, every error type, every line of the doctor."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import agent.diagnosis
from agent.diagnosis.readiness import NOT_READY, STILL_READY
from contract.reasons import BrokerReason, HealthReason, Reason

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "TROUBLESHOOTING.md").read_text("utf-8")
TEXT = " ".join(PAGE.split())

LEAST_WORDS = 2
"""Of a piece of a sentence that is looked for: shorter ones (``: soon``) stand in any text."""


def constant_parts(node: ast.expr) -> Iterator[str]:
    """What stands literally in a sentence, between what is filled in."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield from re.split(r"\s*[;:]\s+", each.value.strip(" :;,.()["))


def findings() -> Iterator[tuple[str, str, list[str]]]:
    """Check, verdict and literal parts of the sentence of each finding in the sources that is not good."""
    folder = Path(agent.diagnosis.__file__).parent
    for module in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding" and len(node.args) >= 3):
                continue
            check, verdict, detail = node.args[:3]
            verdicts = {each.value for each in ast.walk(verdict) if isinstance(each, ast.Constant)}
            if verdicts & {"bad", "warning"} and isinstance(check, ast.Constant):
                parts = [part for part in constant_parts(detail) if len(part.split()) >= LEAST_WORDS]
                yield str(check.value), str(verdicts), parts


def test_every_reason_code_is_there() -> None:
    codes = [code.value for kind in (Reason, BrokerReason, HealthReason) for code in kind]
    assert not [code for code in codes if f"`{code}`" not in PAGE]


def test_every_line_of_the_doctor_that_is_not_good_is_there() -> None:
    found = list(findings())
    assert len(found) > 30
    missing = [f"{check}: {part}" for check, _, parts in found for part in parts if part not in TEXT]
    missing += [check for check, _, _ in found if f"`{check}`" not in PAGE]
    assert not missing


def test_what_health_means_is_said_in_the_words_of_the_doctor() -> None:
    for reason, (meaning, _) in NOT_READY.items():
        assert f"| `{reason}` | {meaning} |" in TEXT, reason
    for reason, meaning in STILL_READY.items():
        assert f"| `{reason}` | {meaning} |" in TEXT, reason


def test_every_error_of_a_request_is_there() -> None:
    errors = (Path(__file__).resolve().parents[3] / "docs" / "MQTT.md").read_text().partition("### Errors")[2]
    types = set(re.findall(r"^\| \d{3} \| `(\w+)`", errors, re.MULTILINE))
    assert len(types) > 12
    assert not [name for name in types if f"`{name}`" not in PAGE]
