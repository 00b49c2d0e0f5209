"""The order in which ``make test`` hands out files of tests."""

from __future__ import annotations

from pathlib import Path

from tests.schedule import keep, longest_first, measured, read_durations


def test_the_longest_come_first_each_once_and_the_unknown_before_the_short() -> None:
    files = ["short.py", "long.py", "short.py", "unknown.py", "middle.py", "also_short.py"]
    durations = {"short.py": 1.0, "also_short.py": 1.0, "long.py": 90.0, "middle.py": 30.0, "gone.py": 500.0}
    assert longest_first(files, durations) == ["long.py", "middle.py", "unknown.py", "also_short.py", "short.py"]


def test_a_report_is_read_by_file_also_for_tests_in_classes(tmp_path: Path) -> None:
    report = tmp_path / "test.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.test_schedule" name="one" time="1.25"/>'
        '<testcase classname="tests.test_schedule.TestNothing" name="two[a.b]" time="2.5"><failure/></testcase>'
        '<testcase classname="tests.was_there_once" name="three" time="7"/>'
        '<testcase classname="" name="tests.test_documents" time="0"/>'
        "</testsuite></testsuites>"
    )
    assert measured(report) == {"tests/test_schedule.py": 3.8}


def test_what_is_written_down_keeps_the_others_and_forgets_what_is_gone(tmp_path: Path) -> None:
    report, kept = tmp_path / "test.xml", tmp_path / "durations.json"
    report.write_text('<testsuite><testcase classname="tests.test_schedule" name="one" time="1.25"/></testsuite>')
    keep(report, kept)
    assert read_durations(kept) == {"tests/test_schedule.py": 1.2}
    kept.write_text('{"tests/test_documents.py": 4.0, "tests/test_schedule.py": 9.0, "tests/test_gone.py": 5.0}')
    keep(report, kept)
    assert read_durations(kept) == {"tests/test_documents.py": 4.0, "tests/test_schedule.py": 1.2}
