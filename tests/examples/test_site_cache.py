"""The cache of a site, as shipped: a real nginx between a real repository server and installers of devices."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.bundle.manifest import Manifest
from contract.errors import SourceUnavailable
from contract.source.http import HttpSource
from tests.agent.install.market import Device, Market
from tests.broker import free_port
from tests.fleet.waiting import until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "site-cache" / "nginx.conf"
EXTRA_BYTES = 12_345_678
"""Of no whole number of slices."""

MAIN = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 256; }}
http {{
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  log_format bytes '$request_method $uri $status $body_bytes_sent';
  include {dir}/site.conf;
}}
"""
ORIGIN = "access_log {log} bytes; server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }}"

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


class Nginx:
    """One server of ours with the configuration ``site``."""

    def __init__(self, directory: Path, port: int, site: str) -> None:
        directory.mkdir()
        self._directory = directory
        self._port = port
        (directory / "nginx.conf").write_text(MAIN.format(dir=directory))
        (directory / "site.conf").write_text(site)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert NGINX is not None
        user = ["-g", "user root;"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [NGINX, "-p", str(self._directory), "-c", str(self._directory / "nginx.conf"), *user],
            stderr=subprocess.DEVNULL,
        )
        until(self._listens, f"nginx to listen; {self._log()}")

    def _log(self) -> str:
        log = self._directory / "error.log"
        return log.read_text() if log.exists() else ""

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"nginx ended: {self._log()}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
            return True
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


class Site:
    """A repository behind ``origin``, its ``cache``, and what went over the line between them."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.market = Market(root / "market", bundle)
        self.log = root / "upstream.log"
        port, self.port = free_port(), free_port()
        self.origin = Nginx(root / "origin", port, ORIGIN.format(log=self.log, port=port, root=self.market.location))
        self.cache = Nginx(root / "cache", self.port, shipped(root / "kept", self.port, port))
        self.url = f"http://127.0.0.1:{self.port}"

    def upstream_bytes(self, path: str) -> int:
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return sum(int(size) for _, uri, _, size in lines if uri.startswith(path))

    def install(self, directory: Path, version: str) -> None:
        Device(directory).install(self.market.job(directory, version, sources=[self.url]))


def shipped(kept: Path, port: int, origin: int) -> str:
    """The example with its three places changed, as its reader does, and nothing else."""
    text = SHIPPED.read_text()
    for there, here in (
        ("/var/cache/nginx/edge-bundle", str(kept)),
        ("listen 8081;", f"listen 127.0.0.1:{port};"),
        ("https://models.example.org;", f"http://127.0.0.1:{origin};"),
    ):
        assert text.count(there) == 1
        text = text.replace(there, here)
    return text


@pytest.fixture
def site(tmp_path: Path, tiny_bundle: Path) -> Iterator[Site]:
    made = Site(tmp_path, tiny_bundle)
    made.origin.start()
    made.cache.start()
    yield made
    made.cache.stop()
    made.origin.stop()


def size_of(manifest: Manifest) -> int:
    """Bytes of a bundle's files, equal ones once, as the repository keeps them."""
    return sum({entry.sha256: entry.size for entry in manifest.files}.values())


def test_three_devices_that_install_at_the_same_time_cost_one_copy(site: Site, tmp_path: Path) -> None:
    manifest = site.market.publish("1.1.0", {"extra.bin": os.urandom(EXTRA_BYTES)})
    names = ["one", "two", "three"]
    failed: list[BaseException] = []

    def install(name: str) -> None:
        try:
            site.install(tmp_path / name, "1.1.0")
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=install, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert site.upstream_bytes("/objects/") == size_of(manifest)
    before = site.log.read_text()
    # Another one, later: nothing at all of the bundle's files.
    site.install(tmp_path / "four", "1.1.0")
    later = site.log.read_text().removeprefix(before)
    assert "/objects/" not in later


def test_a_new_version_is_seen_and_what_it_shares_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    site.market.publish("1.1.0")
    site.install(tmp_path / "one", "1.1.0")
    before = site.upstream_bytes("/objects/")
    cache, newest = HttpSource(site.url), "metadata/timestamp.json"
    older = cache.read(newest, 1 << 16)
    manifest = site.market.publish("1.2.0", {"extra.bin": os.urandom(EXTRA_BYTES)})
    until(lambda: cache.read(newest, 1 << 16) != older, "the new version to be seen behind the cache")
    site.install(tmp_path / "two", "1.2.0")
    (extra,) = (entry for entry in manifest.files if entry.path == "extra.bin")
    assert site.upstream_bytes("/objects/") - before == extra.size


def test_what_the_cache_has_is_installed_while_the_line_is_down(site: Site, tmp_path: Path) -> None:
    site.market.publish("1.1.0")
    site.install(tmp_path / "one", "1.1.0")
    site.origin.stop()
    site.install(tmp_path / "two", "1.1.0")
    with pytest.raises(SourceUnavailable):
        list(HttpSource(site.url).stream("objects/" + "0" * 64, 0, 10))


def test_the_readme_says_what_the_file_has() -> None:
    text = SHIPPED.read_text()
    assert text.count("CHANGE:") == 3
    assert re.search(r"slice 1m;.*proxy_cache_lock on;", text, re.DOTALL)
    readme = (SHIPPED.parent / "README.md").read_text()
    assert "8081" in text
    assert "8081" in readme
