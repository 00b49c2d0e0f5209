"""What is fetched from the hub, and what is not: a real server of its kind counts the files that are asked for."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BuildRefused
from packager.sources.checkpoint import Checkpoint
from packager.sources.opening import SourceOptions, open_source
from tests.packager.families import FAMILY_CONFIGS, make_random

COMMIT = "2fe192450127e6a83f7441aef6e3ca586c338b77"


class _Hub(http.server.ThreadingHTTPServer):
    """The part of the hub's API that its own library uses to fetch a snapshot of ``owner/model``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.fetched: list[str] = []
        self.read: dict[str, int] = {}
        """Bytes of each weight file that were sent in answer to ranges."""
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = {file.name: file for file in self.server.directory.iterdir()}
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/owner/model"):
            siblings = [
                {"rfilename": name, "size": file.stat().st_size, "blobId": "0" * 40} for name, file in files.items()
            ]
            listed = [{"type": "file", "path": entry["rfilename"], "oid": "0" * 40, **entry} for entry in siblings]
            whole = {"id": "owner/model", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self._answer(json.dumps(listed if "/tree/" in path else whole).encode())
        elif path.startswith(f"/owner/model/resolve/{COMMIT}/") and name in files:
            data = files[name].read_bytes()
            asked = self.headers.get("Range") if self.server.ranges and self.command == "GET" else None
            if asked is not None and asked.startswith("bytes="):
                first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
                part = data[first : last + 1]
                self.server.read[name] = self.server.read.get(name, 0) + len(part)
                self._answer(part, 206, **{"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"})
                return
            if self.command == "GET":
                self.server.fetched.append(name)
            self._answer(data, ETag=f'"{hashlib.sha256(data).hexdigest()}"')
        else:
            self.send_error(404)

    def _answer(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data)), "X-Repo-Commit": COMMIT}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    directory = tmp_path / "published"
    directory.mkdir()
    make_random(directory, FAMILY_CONFIGS["llama-3"]())
    (directory / "consolidated.safetensors").write_bytes(b"the same weights once more")
    server = _Hub(directory)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield server
    server.shutdown()
    server.server_close()


def opened(tmp_path: Path, **more: Any) -> Any:
    options = SourceOptions(hub_cache=tmp_path / "hub")
    return open_source("owner/model", tmp_path / "cache", tmp_path / "log", lambda done, total: None, options, **more)


def test_weights_are_fetched_once_and_last(hub: _Hub, tmp_path: Path) -> None:
    known: list[tuple[Checkpoint, list[str]]] = []

    def judge(found: Checkpoint) -> None:
        known.append((found, list(hub.fetched)))

    found = opened(tmp_path, on_headers=judge)
    assert found.revision == COMMIT
    [(surveyed, before)] = known
    parameters, pending = surveyed.parameters, surveyed.pending
    assert pending.download_bytes == (hub.directory / "model.safetensors").stat().st_size
    assert pending.download_directory is not None
    assert pending.download_directory.is_relative_to(tmp_path / "hub")
    assert not [name for name in before if name.endswith(".safetensors")]
    assert abs(parameters - found.checkpoint.parameters) < 0.1 * parameters
    assert sorted(hub.fetched) == sorted(set(hub.fetched)), "nothing is fetched twice"
    assert [name for name in hub.fetched if name.endswith(".safetensors")] == ["model.safetensors"]
    opened(tmp_path, on_headers=judge)
    assert known[1][0].pending.download_bytes == 0, "what is there already is not fetched again"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", '{"architectures": ["MambaForCausalLM"]}', "cannot be built"),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "renders no conversation"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("adapter_config.json", "{}", "is an adapter"),
    ],
)
def test_nothing_of_the_weights_is_fetched_of_what_is_refused(
    hub: _Hub, tmp_path: Path, file: str, text: str | None, words: str
) -> None:
    (hub.directory / file).unlink(missing_ok=True)
    if file == "adapter_config.json":
        (hub.directory / "config.json").unlink()
    if text is not None:
        (hub.directory / file).write_text(text)
    with pytest.raises(BuildRefused, match=words):
        opened(tmp_path)
    assert hub.fetched
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]


@pytest.mark.parametrize("ranges", [True, False])
def test_names_and_shapes_are_judged_by_headers_alone(hub: _Hub, tmp_path: Path, ranges: bool) -> None:
    from safetensors.torch import load_file, save_file

    file = hub.directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    hub.ranges = ranges
    with pytest.raises(BuildRefused, match=r"1 missing in the files: model\.norm\.weight"):
        opened(tmp_path)
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    if ranges:
        assert file.name not in hub.fetched
        assert 0 < hub.read[file.name] < 0.2 * file.stat().st_size


def test_an_index_of_files_that_the_repository_lacks(hub: _Hub, tmp_path: Path) -> None:
    (hub.directory / "model.safetensors").rename(hub.directory / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (hub.directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        BuildRefused, match=r"owner/model has no 'model-2.safetensors', one of 2 files that its .*index"
    ):
        opened(tmp_path)
    assert not hub.read
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
