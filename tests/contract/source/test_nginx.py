"""A repository served by a real nginx: nothing but static files with Range."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from contract.reasons import Reason
from contract.source.http import HttpSource
from tests.broker import free_port
from tests.contract.trust.publisher import Device
from tests.contract.trust.samples import make_bundle, make_repository

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

CONFIGURATION = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log; {user}
events {{ worker_connections 64; }}
http {{
  access_log {dir}/access.log;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  server {{ listen unix:{dir}/ready.sock; listen 127.0.0.1:{port}; location / {{ root {root}; }} }}
}}
"""


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_device_installs_from_nginx(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    bundle = make_bundle(tmp_path / "bundle", version="1.0.0+build.1")
    repository.publish(bundle)
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    user = "user root;" if Path("/proc/self").stat().st_uid == 0 else ""
    configuration.write_text(CONFIGURATION.format(dir=tmp_path, port=port, root=repository.path, user=user))
    assert NGINX is not None
    server = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "nginx.pid").exists() or not _listening(port):
            assert server.poll() is None, "nginx ended"
        device = Device(tmp_path / "trust", (repository.path / "metadata/1.root.json").read_bytes())
        source = HttpSource(f"http://127.0.0.1:{port}")
        trusted = device.resolve(source, "demo@1.0.0+build.1")
        for entry in trusted.manifest.files:
            original = (bundle / entry.path).read_bytes()
            middle = entry.size // 2
            path = f"objects/{entry.sha256}"
            assert b"".join(source.stream(path, middle, entry.size - middle)) == original[middle:]
            assert b"".join(source.stream(path, 0, middle)) == original[:middle]
        assert device.refused(source, "demo@9.0.0") is Reason.NOT_LISTED
        assert '" 206 ' in (tmp_path / "access.log").read_text()
    finally:
        server.terminate()
        server.wait()


def _listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
