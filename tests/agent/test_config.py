"""The configuration says what is wrong and what to write instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import load_config
from agent.config_faults import line_of
from contract.errors import ConfigInvalid
from contract.source.access import SourceSettings

GOOD = 'device = "box"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_smallest_configuration_is_a_name(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.device == "box"
    assert config.broker.address == "localhost:1883"
    assert config.state_dir == Path("/var/lib/edge-agent")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, 'device = "box"\nstate_dir = "state"\n[sources]\nhere = "repo"\nweb = "https://x/y"\n')
    )
    assert config.state_dir == tmp_path / "state"
    assert config.sources == {"here": str(tmp_path / "repo"), "web": "https://x/y"}


@pytest.mark.parametrize(
    ("text", "field", "hint"),
    [
        ("", "device", "device is missing"),
        ('device = "a b"', "device", "device id"),
        (GOOD + "devise = 1", "devise", "did you mean device?"),
        (GOOD + "[broker]\nhots = 'x'", "broker.hots", "did you mean broker.host?"),
        (GOOD + "[broker]\nport = 0", "broker.port", ">= 1"),
        (GOOD + "[broker]\nport = 'x'", "broker.port", "int"),
        (GOOD + "[broker]\nprotocol = '3.1'", "broker.protocol", "3.1"),
        (GOOD + "[broker]\nhost = 'example.org'", "broker.tls", "allow_plaintext"),
        (GOOD + "[broker]\npassword_file = 'x'", "broker.username", "username"),
        (GOOD + "[broker]\nusername = 'u'\npassword_file = 'missing'", "broker.password_file", "cannot be read"),
        (GOOD + "[broker.tls]\nca = 'missing.pem'", "broker.tls.ca", "missing.pem"),
        (GOOD + "[broker.tls]\nkey = 'k.pem'", "broker.tls.cert", "needs"),
        (GOOD + "[broker.tls]\ncertt = 'k.pem'", "broker.tls.certt", "broker.tls.cert"),
        (GOOD + "[serving]\nqueue_limit = 0", "serving.queue_limit", ">= 1"),
        (GOOD + "[serving]\nqueue_limits = 9", "serving.queue_limits", "serving.queue_limit"),
        (GOOD + "[install]\nswap = 'sideways'", "install.swap", "sideways"),
        (GOOD + "[worker]\nthreads = -1", "worker.threads", ">= 0"),
        (GOOD + "[telemetry]\ninterval_seconds = -1", "telemetry.interval_seconds", ">= 0"),
        (GOOD + "topic_root = 'a//b'", "topic_root", "topic root"),
        ("groups = ['ä']\n" + GOOD, "groups.ä", "cannot be a name"),
        (GOOD + "broker = 7", "broker", "object"),
    ],
)
def test_mistake_is_named_with_its_mend(tmp_path: Path, text: str, field: str, hint: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, text))
    assert caught.value.field == field
    assert hint in caught.value.message


def test_plaintext_is_for_this_machine_unless_allowed(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        load_config(write(tmp_path, GOOD + f"[broker]\nhost = '{host}'"))
    allowed = load_config(write(tmp_path, GOOD + "[broker]\nhost = 'example.org'\nallow_plaintext = true"))
    assert allowed.broker.host == "example.org"


def test_password_is_never_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"hunter2\xff")
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, GOOD + "[broker]\nusername = 'u'\npassword_file = 'secret'"))
    assert "hunter2" not in str(caught.value)


def test_check_config_ends_with_78_and_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent.cli", "check-config"]
    good = subprocess.run([*command, str(write(tmp_path, GOOD))], capture_output=True, text=True, check=False)
    assert good.returncode == 0
    bad = subprocess.run([*command, str(write(tmp_path, "devise = 1"))], capture_output=True, text=True, check=False)
    assert bad.returncode == 78
    assert bad.stderr.count("\n") == 1
    assert "did you mean device?" in bad.stderr


MANY = """\
devise = "box"
groups = ["a b", "hall"]

[broker]
hots = "example.org"
port = 70000
username = "u"
password_file = "missing"

[serving]
queue_limit = 0
store_results = "txt"

[telemetry.prometheus]
prot = 9100

[sources]
"d/e" = "x"
depot = ""
"""


def test_all_faults_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, MANY))
    assert {(fault.field, fault.line) for fault in caught.value.faults} == {
        ("devise", 1),
        ("groups.a b", 2),
        ("broker.hots", 5),
        ("broker.port", 6),
        ("broker.password_file", 8),
        ("serving.queue_limit", 11),
        ("serving.store_results", 12),
        ("telemetry.prometheus.prot", 15),
        ("sources.d/e", 18),
        ("sources.depot", 19),
    }
    message = caught.value.message
    assert message.startswith("10 faults: ")
    for hint in ("did you mean device?", "did you mean broker.host?", "did you mean telemetry.prometheus.port?"):
        assert hint in message


def test_check_config_lists_every_fault_where_an_editor_finds_it(tmp_path: Path) -> None:
    path = write(tmp_path, MANY)
    command = [sys.executable, "-m", "agent.cli", "check-config", str(path)]
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode == 78
    lines = bad.stderr.splitlines()
    assert len(lines) == 10
    assert f"{path}:6: broker.port: expected `int` <= 65535" in lines
    said = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    found = json.loads(said.stdout)
    assert found["ok"] is False
    assert {key: value for key, value in found["error"]["faults"][1].items() if key != "message"} == {
        "field": "broker.hots",
        "line": 5,
    }
    running = subprocess.run(
        [sys.executable, "-m", "agent.cli", "run", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert running.returncode == 78
    assert running.stderr.count("\n") == 1
    assert "10 faults" in running.stderr


@pytest.mark.parametrize(
    ("text", "field", "line"),
    [
        ("device = 'x'\n[broker]\n\nport = 0\n", "broker.port", 4),
        ("broker.port = 0\n", "broker.port", 1),
        ("broker = { port = 0 }\n", "broker.port", 1),
        ("device = 'x'\n[ broker ]\n", "broker.tls", 2),
        ('[sources]\n"de pot" = ""\n', "sources.de pot", 2),
        ("groups = [\n 7\n]\n", "groups[0]", 1),
        ("device = 'x'\n", "broker.port", None),
    ],
)
def test_a_line_is_found_where_a_key_is_written_one_way_or_another(text: str, field: str, line: int | None) -> None:
    assert line_of(text, field) == line


def test_a_source_may_have_settings_and_its_secrets_are_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """device = "box"
[sources]
stick = "stick.edgebundle"
[sources.depot]
url = "https://models.example.org"
proxy = "http://proxy.example.org:3128"
token_file = "credentials/depot-token"
"""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/depot-token").write_text("tok-1")
    config = load_config(write(tmp_path, text))
    assert config.sources["stick"] == str(tmp_path / "stick.edgebundle")
    depot = config.sources["depot"]
    assert isinstance(depot, SourceSettings)
    assert depot.token_file == str(tmp_path / "credentials/depot-token")
    handed = tmp_path / "handed"
    handed.mkdir()
    (handed / "edge_depot-token").write_text("tok-1")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(handed))
    depot = load_config(tmp_path / "agent.toml").sources["depot"]
    assert isinstance(depot, SourceSettings)
    assert depot.token_file == str(handed / "edge_depot-token")


def test_every_fault_of_a_source_is_said_with_its_line_and_without_secrets(tmp_path: Path) -> None:
    text = """device = "box"
[sources]
presigned = "https://bucket.example/repo?X-Amz-Signature=5ecret"
[sources.depot]
url = "http://models.example.org"
token_fiel = "credentials/depot-token"
[sources.other]
url = "http://models.example.org"
username = "box"
password_file = "gone"
[sources.bare]
proxy = "socks5://p"
"""
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, text))
    found = {fault.field: (fault.line, fault.message) for fault in caught.value.faults}
    assert found["sources.depot.token_fiel"] == (
        6,
        "sources.depot.token_fiel is not a key of the configuration: did you mean sources.depot.token_file?",
    )
    assert found["sources.bare.url"] == (11, "sources.bare.url is missing")
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, text[: text.index("[sources.bare]")].replace("token_fiel", "token_file")))
    found = {fault.field: (fault.line, fault.message) for fault in caught.value.faults}
    assert {field: line for field, (line, _) in found.items()} == {
        "sources.presigned": 3,
        "sources.depot.url": 5,
        "sources.depot.token_file": 6,
        "sources.other.url": 8,
        "sources.other.password_file": 10,
    }
    assert "opens a single file" in found["sources.presigned"][1]
    assert "5ecret" not in caught.value.message


@pytest.mark.parametrize(
    ("broker", "field", "words"),
    [
        ("host = 'localhost'\nhosts = ['127.0.0.1']", "broker.hosts", "keep one of them"),
        ("hosts = []", "broker.hosts", "names 0 hosts"),
        ("hosts = ['127.0.0.1', 'localhost', '127.0.0.1:1883']", "broker.hosts", "127.0.0.1:1883 twice"),
        ("hosts = ['localhost:0']", "broker.hosts", "port from 1 to 65535"),
        ("hosts = ['localhost:65536']", "broker.hosts", "port from 1 to 65535"),
        ("hosts = ['localhost:']", "broker.hosts", "'localhost:' is no host"),
        ("hosts = ['mqtt://localhost']", "broker.hosts", "'mqtt://localhost' is no host"),
        ("hosts = ['[::1]1883']", "broker.hosts", "'[::1]1883' is no host"),
        ("hosts = ['127.0.0.1', 'broker.example.org']", "broker.tls", "'broker.example.org' is another machine"),
        ("host = 'localhost:1883'", "broker.host", "the port goes into broker.port"),
        ("path = 'mqtt'", "broker.path", ""),
        ("transport = 'websocket'", "broker.transport", ""),
    ],
)
def test_hosts_that_cannot_be_are_named(tmp_path: Path, broker: str, field: str, words: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f"device = 'd1'\n[broker]\n{broker}\n")
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path)
    assert caught.value.field == field
    assert words in caught.value.message


def test_hosts_may_leave_out_the_port_and_be_ipv6(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("device = 'd1'\n[broker]\nport = 1884\nhosts = ['localhost', '127.0.0.1:99', '::1', '[::1]:7']\n")
    settings = load_config(path).broker
    assert settings.address == "localhost:1884, 127.0.0.1:99, [::1]:1884, [::1]:7"
