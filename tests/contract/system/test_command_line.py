"""How commands end: one sentence, the right status, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FAILING = """
import sys, types
from contract import errors
from contract.system import command_line
from contract.reasons import Reason
module = types.ModuleType("failing")
module.configure = lambda parser: parser.add_argument("--json", action="store_true")
def run(arguments):
    {body}
module.run = run
sys.modules["failing"] = module
sys.exit(command_line.main("edge-test", "A test.", {{"fail": ("failing", "fails")}}, sys.argv[1:]))
"""


def call(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = FAILING.format(body=body)
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return 0", 0),
        ("raise errors.UsageError('say it otherwise')", 2),
        ("raise errors.BundleRefused(Reason.EXPIRED, 'the metadata expired')", 3),
        ("raise errors.BuildRefused('no tokenizer')", 3),
        ("raise errors.SourceUnavailable('no answer')", 4),
        ("raise errors.StoreFull('no space')", 5),
        ("raise errors.EngineFailed('it crashed')", 6),
        ("raise errors.ConfigInvalid('no device')", 78),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_each_kind_of_error_has_its_exit_status_and_one_line(body: str, status: int) -> None:
    done = call(body, "fail")
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (0 if status == 0 else 1)


def test_json_errors_go_to_stdout_with_reason_and_field() -> None:
    done = call("raise errors.BundleRefused(Reason.UNSAFE_PATH, 'bad path', field='path')", "fail", "--json")
    assert json.loads(done.stdout) == {"error": {"message": "bad path", "reason": "unsafe_path", "field": "path"}}
    assert "bad path [unsafe_path]" in done.stderr


def test_a_missing_or_unknown_command_is_a_usage_error() -> None:
    assert call("return 0").returncode == 2
    assert call("return 0", "fial").returncode == 2


def test_an_unknown_option_is_refused_with_the_nearest_right_one() -> None:
    done = call("return 0", "fail", "--jsn")
    assert done.returncode == 2
    assert "there is no option --jsn; did you mean --json?" in done.stderr
    assert "'word' is one argument too many" in call("return 0", "fail", "word").stderr
