"""Fixtures that several rooms share, and the rule that CI may not skip what needs a real broker."""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """With EDGE_REQUIRE_BROKER=1, a test marked ``broker`` that was skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("EDGE_REQUIRE_BROKER") == "1" and item.get_closest_marker("broker"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs a real broker and was skipped: {report.longrepr}"
    return report
