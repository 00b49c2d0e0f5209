"""``install`` while the source is out of reach or a captive portal answers for it; where its credentials do not go."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import ClassVar

import pytest

from agent.commands.install import retry
from contract.errors import BundleRefused, EdgeBundleError, SourceUnavailable
from contract.reasons import Reason
from contract.system.backoff import Backoff
from tests.agent.commands.test_device_commands import COMMAND, edge_agent
from tests.agent.install.market import Market
from tests.contract.source.servers import WRONGS, Troubled, make_certificate, serve, server_tls, troubled

TOKEN = "tok-3141592653589793"


@pytest.fixture(scope="module")
def market(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Market:
    made = Market(tmp_path_factory.mktemp("market") / "market", tiny_bundle)
    made.publish("1.0.0")
    return made


def configure(tmp_path: Path, sources: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(
        f'device = "box"\nstate_dir = "{tmp_path / "state"}"\n[install]\nretry_first_seconds = 0.05\n'
        f"retry_longest_seconds = 0.1\n{sources}"
    )
    return path


# Waiting.


class Clock:
    """Passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(failures: list[EdgeBundleError], timeout: float) -> tuple[int, list[float]]:
    """How often it was tried, and the waits."""
    clock, waits, tries = Clock(), [], 0

    def attempt() -> None:
        nonlocal tries
        tries += 1
        if failures:
            raise failures.pop(0)

    backoff = Backoff(10.0, 40.0, lambda low, high: high)
    retry(
        attempt, backoff, timeout=timeout, on_wait=lambda error, delay: waits.append(delay), clock=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    return tries, waits


def test_a_source_is_tried_again_until_it_works() -> None:
    away = SourceUnavailable("away")
    assert run([away, away, away, away], 600.0) == (5, [10.0, 20.0, 40.0, 40.0])
    assert run([SourceUnavailable("busy", retry_after=100.0)], 600.0)[1] == [pytest.approx(110.0)]


def test_it_is_given_up_when_the_next_attempt_would_be_too_late() -> None:
    with pytest.raises(SourceUnavailable, match="third"):
        run([SourceUnavailable(each) for each in ("first", "second", "third", "fourth")], 60.0)
    with pytest.raises(SourceUnavailable, match="first"):
        run([SourceUnavailable("first"), SourceUnavailable("second")], 0.0)


def test_what_is_final_is_not_tried_again() -> None:
    with pytest.raises(BundleRefused):
        run([BundleRefused(Reason.REVOKED, "no")], 600.0)


def test_a_captive_portal_is_waited_out_on_the_command_line(market: Market, tmp_path: Path) -> None:
    config = configure(tmp_path, "")
    with serve(Path(market.location), troubled({"metadata": [WRONGS["portal"]] * 2})) as url:
        done = edge_agent("install", url, "tiny@1.0.0", "--config", config, "--root", market.root_json)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tiny@1.0.0 is active\n"
    waits = [line for line in done.stderr.splitlines() if line.endswith("; retrying in 0 s")]
    assert len(waits) == 2
    assert "is not JSON" in waits[0]


def test_without_patience_it_ends_with_4(market: Market, tmp_path: Path) -> None:
    config = configure(tmp_path, "")
    with serve(Path(market.location), troubled({"metadata": [WRONGS["bad gateway"]]})) as url:
        done = edge_agent("install", url, "tiny@1.0.0", "--config", config, "--root", market.root_json, "--no-retry")
    assert done.returncode == 4, done.stderr
    assert "retrying" not in done.stderr
    assert "status 502 [source_unavailable]" in done.stderr


def test_an_interrupt_while_waiting_ends_it(market: Market, tmp_path: Path) -> None:
    config = configure(tmp_path, "")
    config.write_text(config.read_text().replace("0.05", "60.0").replace("0.1", "60.0"))
    command = [*COMMAND, "install", "http://127.0.0.1:1", "tiny@1.0.0", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--root", str(market.root_json)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "retrying in" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err + out


def test_a_presigned_url_and_an_unknown_source_are_mistakes_of_the_command_line(tmp_path: Path) -> None:
    config = configure(tmp_path, '[sources]\ndepot = "/media/stick"\n')
    done = edge_agent("install", "https://x/y?X-Amz-Signature=5ecret", "tiny@1.0.0", "--config", config)
    assert done.returncode == 2
    assert "opens a single file" in done.stderr
    assert "5ecret" not in done.stderr
    done = edge_agent("install", "depto", "tiny@1.0.0", "--config", config)
    assert done.returncode == 2
    assert "'depto' is neither a local path nor a configured source (configured: depot)" in done.stderr


# Credentials.


class Guarded(Troubled):
    """Lets in who has the token."""

    trouble: ClassVar = {}

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            super().do_GET()
        else:
            WRONGS["forbidden"](self, b"") if "objects" in self.path else self.send_error(401)


def test_a_configured_source_is_used_by_its_name_and_its_secrets_appear_nowhere(market: Market, tmp_path: Path) -> None:
    server, client = make_certificate(tmp_path, "localhost"), make_certificate(tmp_path, "box")
    (tmp_path / "credentials").mkdir()
    token = tmp_path / "credentials/token"
    token.write_text("wr0ng-t0ken\n")
    with serve(Path(market.location), Guarded, server_tls(server, client)) as url:
        config = configure(
            tmp_path,
            f'[sources.depot]\nurl = "{url}"\nca = "{server}"\ncert = "{client}"\n'
            f'key = "{client.with_suffix(".key")}"\ntoken_file = "credentials/token"\n',
        )
        order = ("install", "depot", "tiny@1.0.0", "--config", config, "--root", market.root_json)
        refused = edge_agent(*order, "--timeout", "1")
        assert refused.returncode == 4
        assert "wants credentials, or others than it is given (status 401)" in refused.stderr
        token.write_text(f"{TOKEN}\n")
        done = edge_agent(*order, "--json")
        assert done.returncode == 0, done.stderr
        # The URL means the configured source, too.
        again = edge_agent("trust", "refresh", url, "--config", config)
        assert again.returncode == 0, again.stderr
    said = [refused, done, again, edge_agent("status", "--config", config, "--json")]
    report = tmp_path / "report.tar.gz"
    said.append(edge_agent("report", report, "--config", config))
    texts = [text for each in said for text in (each.stdout, each.stderr)]
    with tarfile.open(report) as archive:
        members = [archive.extractfile(member) for member in archive.getmembers()]
        texts += [member.read().decode("utf-8", "replace") for member in members if member is not None]
    for directory, _, names in os.walk(tmp_path / "state"):
        texts += [(Path(directory) / name).read_bytes().decode("latin-1") for name in names if name != "control"]
    assert len(texts) > 15
    for secret in (TOKEN, "wr0ng-t0ken", client.with_suffix(".key").read_text().splitlines()[1]):
        assert not any(secret in text for text in texts)
    assert any('"token_file": "credentials/token"' in text for text in texts), "the report names the file"
