"""``edge-fleet serve``: its options, over HTTPS, and what is wrong with them said in a sentence."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker import free_port
from tests.certificates import Authority
from tests.fleet.commands.test_commands import Run, run
from tests.fleet.waiting import until

__all__ = ["run"]


def test_the_console_over_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.sign("fleet", -1, 30)
    port = free_port()
    words = [
        "--roles", "web", "--broker", "mqtt://127.0.0.1:1", "--database", f"sqlite:///{tmp_path}/fleet.db",
        "--listen", f"127.0.0.1:{port}", "--tls-cert", str(tmp_path / "fleet.pem"),
        "--tls-key", str(tmp_path / "fleet.key"), "--url", "https://fleet.example.org", "--proxy", "127.0.0.1",
    ]  # fmt: skip
    context = ssl.create_default_context(cafile=authority.certificate)

    def ask(path: str, host: str = "fleet.example.org") -> tuple[int, http.client.HTTPMessage, bytes] | None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        try:
            connection.request("GET", path, headers={"host": host, "x-forwarded-for": "198.51.100.1"})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except OSError:
            return None
        finally:
            connection.close()

    process = subprocess.Popen(
        [sys.executable, "-m", "fleet.cli", "serve", *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        found = until(lambda: ask("/sign-in"), "the console to answer")
        assert found[0] == 200
        assert found[1]["strict-transport-security"] == "max-age=31536000"
        assert "Secure" in found[1]["set-cookie"]
        refused = ask("/sign-in", "evil.example.org")
        assert refused is not None
        assert refused[0] == 421
        health = ask("/healthz")
        assert health is not None
        assert json.loads(health[2])["status"] == "ok"
        # Whoever does not speak TLS is not answered.
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with pytest.raises((OSError, http.client.HTTPException)):
            plain.request("GET", "/sign-in")
            plain.getresponse()
        plain.close()
        process.terminate()
        assert process.stdout is not None
        said = process.stdout.read()
        assert f"answers at https://127.0.0.1:{port}; nobody can sign in yet" in said
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--roles", "wbe"], "'wbe' is no role; roles are controller, ingest, web, gateway; did you mean web?"),
        (["--roles", ","], "name a role at least"),
        (["--roles", "web", "--listen", "8080"], "write HOST:PORT"),
        (["--roles", "web", "--listen", "127.0.0.1:99999"], "write HOST:PORT"),
        (["--roles", "web", "--listen", "nowhere.invalid:8080"], "cannot listen on nowhere.invalid:8080"),
        (["--roles", "web", "--tls-cert", "fleet.pem"], "--tls-cert and --tls-key go together"),
        (
            ["--roles", "web", "--listen", "127.0.0.1:0", "--tls-cert", "no.pem", "--tls-key", "no.key"],
            "the certificate or its key cannot be used",
        ),
        (["--roles", "web", "--url", "fleet.example.org"], "write --url as https://fleet.example.org"),
        (["--roles", "web", "--proxy", "nginx"], "--proxy 'nginx' is no address of a proxy"),
        (["--roles", "web", "--depot", "somewhere"], "--depot and --root go together"),
        (["--roles", "web", "--oidc", "no.toml"], "no.toml"),
        (["--roles", "gateway", "--cors-origin", "chat.example.org"], "is no origin"),
        (["--roles", "gateway", "--without-keys", "--listen", "0.0.0.0:8080"], "use keys"),
        (["--broker", "http://broker"], "write the broker as mqtt://host:1883"),
        (["--database", "mysql://x/y"], "write the database as sqlite:///fleet.db"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(run: Run, words: list[str], told: str) -> None:
    found = run("serve", *words)
    # A file that says something wrong is a configuration that is wrong.
    assert found.status == (78 if "--oidc" in words else 2), found.err
    assert told in found.err
    assert "Traceback" not in found.err
