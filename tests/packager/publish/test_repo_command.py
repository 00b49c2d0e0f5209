"""``edge-packager repo`` as an operator types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.source.opening import open_source
from contract.system.command_line import main
from packager.cli import COMMANDS
from tests.contract.source.servers import RangeHandler, make_certificate, serve, server_tls
from tests.contract.trust.samples import make_bundle


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_REPO_PASSPHRASE", "correct horse")
    return tmp_path


def repo(*words: str) -> int:
    return main("edge-packager", "", COMMANDS, ["repo", *words])


def test_the_way_from_keys_to_a_mirror(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(here / "build")
    assert repo("init") == 0
    assert repo("publish", "build") == 0
    assert repo("export", "demo@1.0.0") == 0
    assert repo("verify") == 0
    assert "1 bundle(s)" in capsys.readouterr().out
    open_source("demo-1.0.0.edgebundle").close()
    assert repo("import", "demo-1.0.0.edgebundle", "--repo", "mirror", "--root", "repository/metadata/1.root.json") == 0
    assert repo("rotate", "timestamp") == 0
    assert repo("refresh") == 0
    assert repo("renew", "root") == 0
    assert repo("revoke", "demo@1.0.0") == 0
    capsys.readouterr()
    assert repo("show", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["revoked"] == ["demo@1.0.0"]
    assert {role["role"] for role in shown["roles"]} == {"root", "targets", "snapshot", "timestamp"}
    assert repo("show") == 0
    assert "expires" in capsys.readouterr().out


def test_two_people_sign_in_turns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repo("keygen", "targets", "--keys", "bob", "--json") == 0
    (public,) = (here / "bob").glob("*.pub")
    assert repo("init", "--targets-threshold", "2", "--public-key", f"targets={public}") == 0
    assert "1 more signature(s) for targets" in capsys.readouterr().out
    assert repo("sign", "--keys", "bob") == 0
    assert repo("sign") == 0
    make_bundle(here / "build")
    assert repo("publish", "build", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["published"] is False
    assert repo("discard") == 0
    assert repo("sign") == 3


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("publish", "missing"), 3, "no manifest.json"),
        (("show",), 3, "repo init"),
        (("verify",), 3, "not a finished repository"),
        (("export", "demo"), 3, "NAME@VERSION"),
        (("export", "demo@1.0.0"), 3, "repo init"),
        (("import", "nothing.edgebundle"), 4, "does not exist"),
        (("init", "--root-threshold", "3"), 3, "cannot be required"),
        (("init", "--public-key", "nonsense"), 2, "ROLE=FILE"),
        (("init", "--public-key", "root=missing.pub"), 3, "cannot be read"),
        (("init", "--passphrase-file", "missing"), 2, "cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(
    words: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repo(*words) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_a_wrong_passphrase_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(here / "build")
    assert repo("init") == 0
    monkeypatch.setenv("EDGE_REPO_PASSPHRASE", "wrong")
    assert repo("publish", "build") == 3
    assert "passphrase is wrong" in capsys.readouterr().err
    monkeypatch.delenv("EDGE_REPO_PASSPHRASE")
    monkeypatch.setattr("sys.stdin", (here / "build/manifest.json").open())
    assert repo("publish", "build") == 2
    assert "EDGE_REPO_PASSPHRASE" in capsys.readouterr().err


def test_long_work_counts_its_bytes_where_somebody_looks(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(here / "build")
    assert repo("init") == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for words in (("publish", "build"), ("export", "demo@1.0.0"), ("verify",)):
        assert repo(*words) == 0
        assert "MB" in capsys.readouterr().err
    assert repo("verify", "--json") == 0
    assert capsys.readouterr().err == ""


def test_a_mirror_is_filled_from_a_server_that_wants_a_token(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(here / "build")
    assert repo("init") == 0
    assert repo("publish", "build") == 0
    asked: list[str | None] = []

    class Recording(RangeHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            super().do_GET()

    Path("token").write_text("tok-1\n")
    certificate = make_certificate(here, "localhost")
    with serve(here / "repository", Recording, server_tls(certificate)) as url:
        order = (
            "import",
            url,
            "--repo",
            "mirror",
            "--root",
            "repository/metadata/1.root.json",
            "--ca",
            str(certificate),
        )
        assert repo(*order, "--token-file", "token") == 0
    assert set(asked) == {"Bearer tok-1"}
    assert "received demo@1.0.0" in capsys.readouterr().out
    assert repo("import", "https://x/y?sig=5ecret", "--repo", "mirror") == 2
    assert repo("import", "demo.edgebundle", "--repo", "mirror", "--token-file", "token") == 2
    said = capsys.readouterr().err
    assert "opens a single file" in said
    assert "needs an http(s) URL" in said
    assert "5ecret" not in said
