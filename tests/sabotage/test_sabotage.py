"""The short version of ``make sabotage``: the table fits the code, and taking out a check is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contract.reasons import Reason
from tests.sabotage.checks import CHECKS, Check
from tests.sabotage.removal import resolve

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.attack)
def test_every_check_of_the_table_stands_in_the_code(check: Check) -> None:
    resolve(check.cuts)


def test_every_named_test_exists() -> None:
    for check in CHECKS:
        for test in check.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{check.attack}: {test}"


def test_every_reason_code_is_explained() -> None:
    text = (ROOT / "docs/SECURITY.md").read_text("utf-8").split("## Reason codes")[1]
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in text] == []


def test_no_two_rows_say_the_same() -> None:
    assert len({check.attack for check in CHECKS}) == len(CHECKS)


def test_a_check_that_is_taken_out_is_noticed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sabotage", "small-order public key", "NaN", "symlink"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 checks taken out (2 places), 2 noticed by 4 tests")
