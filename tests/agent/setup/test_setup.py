"""Setting up a directory tree: the plan is told, done once, found done the second time, and taken back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from agent.cli import main
from agent.config import WORKER_SOCKET_VARIABLE, load_config
from agent.setup import plan
from agent.setup.paths import UNITS
from agent.setup.plan import name_device
from agent.setup.steps import RunCommand
from agent.systemd.credentials import find_credential
from contract.errors import UsageError

Capture = pytest.CaptureFixture[str]


class Setup:
    """``edge-agent setup --root`` into a tree, and what it said."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        self.root = root
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        # Where devices have it; the checkout may lie anywhere, also where no service may look.
        monkeypatch.setattr(sys, "prefix", "/opt/edge-agent")
        root.mkdir()

    def __call__(self, *options: str, status: int = 0) -> str:
        self._monkeypatch.setattr(sys, "argv", ["edge-agent", "setup", "--root", str(self.root), *options])
        assert main() == status
        said = self._capsys.readouterr()
        return said.out + said.err

    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.root.rglob("*") if path.is_file() or path.is_symlink()]
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            if not path.is_symlink()
            else str(path.readlink()).encode()
            for path in paths
        }


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Setup:
    return Setup(tmp_path / "image", monkeypatch, capsys)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_everything_is_there_and_the_units_point_to_this_agent(setup: Setup) -> None:
    setup("--yes", "--device", "kitchen-1")
    files = setup.files()
    assert {f"etc/systemd/system/{name}" for name in UNITS} < set(files)
    assert files["etc/systemd/system/multi-user.target.wants/edge-agent.service"].startswith(b"/etc/systemd/system/")
    unit = files["etc/systemd/system/edge-agent.service"].decode()
    assert f"ExecStart={Path(sys.prefix).resolve()}/bin/edge-agent run" in unit
    assert load_config(setup.root / "etc/edge-agent/agent.toml").device == "kitchen-1"
    assert (setup.root / "etc/edge-agent/agent.toml").stat().st_mode & 0o777 == 0o640


def test_the_second_time_there_is_nothing_to_do(setup: Setup) -> None:
    setup("--yes", "--device", "d")
    before = setup.files()
    assert "nothing to do" in setup("--yes", "--device", "d")
    assert setup.files() == before


def test_only_what_differs_is_put_right(setup: Setup) -> None:
    setup("--yes", "--device", "d")
    (setup.root / "etc/systemd/system/edge-agent.slice").write_text("[Slice]\n")
    (step,) = json.loads(setup("--yes", "--json"))["steps"]
    assert step.startswith("replace") and "edge-agent.slice" in step
    assert setup.files()["etc/systemd/system/edge-agent.slice"] != b"[Slice]\n"


def test_a_dry_run_and_an_unanswered_question_change_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "write" in setup("--dry-run")
    with Path("/dev/null").open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert "--yes" in setup(status=2)
    assert setup.files() == {}


def test_a_configuration_that_is_there_is_kept(setup: Setup, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'device = "mine"\n')
    other = write(tmp_path / "other.toml", 'device = "other"\n')
    setup("--yes", "--config", mine)
    setup("--yes", "--config", other)
    assert setup.files()["etc/edge-agent/agent.toml"] == b'device = "mine"\n'
    setup("--yes", "--config", other, "--replace-config")
    assert setup.files()["etc/edge-agent/agent.toml"] == b'device = "other"\n'


def test_credentials_are_for_root_alone_and_never_shown(setup: Setup, tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", "hunter2\n")
    said = setup("--yes", "--device", "d", "--credential", f"password={secret}")
    path = setup.root / "etc/edge-agent/credentials/password"
    assert path.read_text() == "hunter2\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert "hunter2" not in said


def test_removal_leaves_what_cannot_be_had_again_unless_told(setup: Setup, tmp_path: Path) -> None:
    setup("--yes", "--device", "d", "--credential", f"password={write(tmp_path / 's', 'x')}")
    setup("--remove", "--yes")
    assert set(setup.files()) == {"etc/edge-agent/agent.toml", "etc/edge-agent/credentials/password"}
    setup("--remove", "--purge", "--yes")
    assert setup.files() == {}
    assert "nothing to do" in setup("--remove", "--yes")


def test_a_link_is_moved_to_the_new_version(setup: Setup) -> None:
    (setup.root / "opt/edge-agent").mkdir(parents=True)
    (setup.root / "opt/edge-agent/current").symlink_to("0.0.1")
    setup("--yes", "--device", "d", "--link", "/opt/edge-agent/current")
    assert setup.files()["opt/edge-agent/current"] == str(Path(sys.prefix).resolve()).encode()
    assert b"/opt/edge-agent/current/bin/python" in setup.files()["etc/systemd/system/edge-agent-worker@.service"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "/nowhere.toml"], "cannot be read"),
        (["--device", "no/slash"], "device id"),
        (["--credential", "password"], "NAME=FILE"),
        (["--credential", "../x=/dev/null"], "credential"),
        (["--root-json", "/nowhere"], "cannot be read"),
        (["--purge"], "--remove"),
    ],
)
def test_mistakes_are_one_sentence_and_change_nothing(setup: Setup, options: list[str], said: str) -> None:
    output = setup("--yes", *options, status=2)
    assert said in output
    assert output.count("\n") == 1
    assert setup.files() == {}


@pytest.mark.parametrize("host", ["raspberrypi", "localhost", "localhost.localdomain", "Ubuntu", "orangepi"])
def test_a_name_that_an_image_came_with_is_no_identity(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((uname.sysname, host, *uname[2:])))
    with pytest.raises(UsageError, match="give --device NAME"):
        name_device("", None)
    assert name_device("", "kitchen-1") == 'device = "kitchen-1"\n'
    assert name_device('device = "x"\n', None) == 'device = "x"\n'


def test_a_device_is_named_before_the_first_table() -> None:
    assert name_device('[broker]\nhost = "h"\n', "d") == 'device = "d"\n[broker]\nhost = "h"\n'
    assert name_device('device = "x" # ours\n', None) == 'device = "x" # ours\n'
    # A key of that name in a table is none of ours.
    assert name_device('[broker]\ndevice = "x"\n', "d").startswith('device = "d"\n')
    with pytest.raises(UsageError, match="drop one"):
        name_device('device = "x"\n', "y")


def test_the_service_reads_its_secrets_where_systemd_hands_them_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = {"CREDENTIALS_DIRECTORY": "/run/credentials/edge-agent.service"}
    secret = tmp_path / "credentials" / "password"
    assert find_credential(secret, tmp_path, {}) == secret
    assert find_credential(secret, tmp_path, handed) == Path("/run/credentials/edge-agent.service/edge_password")
    assert find_credential(tmp_path / "password", tmp_path, handed) == tmp_path / "password"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "edge_password").write_text("s3cret")
    text = 'device = "d"\n[broker]\nusername = "d"\npassword_file = "credentials/password"\n'
    config = load_config(Path(write(tmp_path / "agent.toml", text)))
    assert config.broker.password_file == tmp_path / "edge_password"


def test_workers_are_sandboxed_where_the_unit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(write(tmp_path / "agent.toml", 'device = "d"\n'))
    assert load_config(file).worker.socket is None
    monkeypatch.setenv(WORKER_SOCKET_VARIABLE, "/run/edge-agent-worker.sock")
    assert load_config(file).worker.socket == Path("/run/edge-agent-worker.sock")


def test_a_unit_that_systemd_says_nothing_of_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(plan, "SYSTEMD_SECONDS", 0.05)
    done = [step.command for step in plan._services(changed=False, units_changed=False) if isinstance(step, RunCommand)]
    assert done == [
        ("systemctl", "restart", "edge-agent-worker.socket"), ("systemctl", "restart", "edge-agent.service"),
    ]  # fmt: skip
