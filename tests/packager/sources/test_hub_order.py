"""What is fetched from the hub, and what is not: a real server of its kind counts the files that are asked for."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pickle
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BuildRefused
from packager.sources.checkpoint import Checkpoint
from packager.sources.hub_process import FIRST_BYTES
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


def pickle_weights(directory: Path, drop: str = "model.norm.weight", shards: int = 1) -> list[Path]:
    """The weights of ``directory`` without one, as torch pickles them, and an index of several files."""
    import torch
    from safetensors.torch import load_file

    whole = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(whole).items() if name != drop}
    whole.unlink()
    (directory / "consolidated.safetensors").unlink()
    names = sorted(tensors)
    index, files = {}, []
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin" if shards > 1 else "pytorch_model.bin"
        torch.save({name: tensors[name] for name in names[number::shards]}, directory / file)
        index |= dict.fromkeys(names[number::shards], file)
        files.append(directory / file)
    if shards > 1:
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return files


class TestPickled:
    @pytest.mark.parametrize("ranges", [True, False])
    @pytest.mark.parametrize("shards", [1, 3])
    def test_names_and_shapes_are_judged_by_first_bytes(
        self, hub: _Hub, tmp_path: Path, ranges: bool, shards: int
    ) -> None:
        files = pickle_weights(hub.directory, shards=shards)
        hub.ranges = ranges
        with pytest.raises(BuildRefused, match=r"1 missing in the files: model\.norm\.weight"):
            opened(tmp_path)
        assert not list((tmp_path / "hub").rglob("*.bin"))
        if ranges:
            assert not [name for name in hub.fetched if name.endswith(".bin")]
            assert sorted(hub.read) == [file.name for file in files]

    def test_many_names_and_few_bytes_of_weights(self, hub: _Hub, tmp_path: Path) -> None:
        """A pickle of names that is longer than what is asked for at first, before 64 MB of weights."""
        import torch

        [file] = pickle_weights(hub.directory)
        tensors = {f"model.layers.{number}.unknown.weight": torch.zeros(2, 2) for number in range(2000)}
        torch.save({**tensors, "last": torch.zeros(4096, 4096)}, file)
        with pytest.raises(BuildRefused, match=r"last"):
            opened(tmp_path)
        assert FIRST_BYTES < hub.read[file.name] < 2**20 < file.stat().st_size

    def test_what_is_no_pickle_of_tensors(self, hub: _Hub, tmp_path: Path) -> None:
        import torch

        class Trap:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "sprung"),)

        [file] = pickle_weights(hub.directory)
        for write, words in (
            (lambda: torch.save({"x": Trap()}, file), "holds more than tensors"),
            (lambda: file.write_bytes(pickle.dumps({"x": Trap()}) * 1000), r"before version 1\.6"),
            (lambda: torch.save(torch.zeros(1), file), "is no plain table of weights"),
        ):
            write()
            with pytest.raises(BuildRefused, match=words):
                opened(tmp_path)
        assert file.name not in hub.fetched
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("change", ["compressed", "another order"])
    def test_archives_of_others_are_judged_once_they_are_here(self, hub: _Hub, tmp_path: Path, change: str) -> None:
        [file] = pickle_weights(hub.directory)
        with zipfile.ZipFile(file) as archive:
            members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        kind = zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name, data in members if change == "compressed" else reversed(members):
                archive.writestr(name, data)
        with pytest.raises(BuildRefused, match="1 missing in the files"):
            opened(tmp_path)
        assert file.name in hub.fetched

    def test_an_index_of_files_that_the_repository_lacks(self, hub: _Hub, tmp_path: Path) -> None:
        pickle_weights(hub.directory, shards=2)[1].unlink()
        with pytest.raises(BuildRefused, match=r"has no 'pytorch_model-00002-of-00002.bin', one of 2 files"):
            opened(tmp_path)
        assert not [name for name in hub.fetched if name.endswith(".bin")]

    def test_what_is_whole_is_fetched_once_and_judged_without_a_network(
        self, hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        [file] = pickle_weights(hub.directory, drop="")
        assert opened(tmp_path).revision == COMMIT
        assert hub.fetched.count(file.name) == 1
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        known: list[Checkpoint] = []
        opened(tmp_path, on_headers=known.append)
        assert known[0].pending.download_bytes == 0
        assert known[0].parameters > 0
