"""``python -m benchmarks.fleet.pages``: how long pages of the console take with 10,000 devices, over HTTP.

The service and its client are two processes; each page is asked for ``--rounds`` times, one after the other. Goal: 95 %
of all pages within 200 ms on an idle machine; the load is printed beside the figures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

PAGES = {
    "overview": "/",
    "devices, first page": "/devices",
    "devices, a selection": "/devices?" + urlencode({"where": "site=oslo or (ram>=4G and not online=true)"}),
    "devices, last page": "/devices?after=quiet-09980",
    "a device": "/devices/{device}",
    "rollouts": "/rollouts",
    "a rollout that bakes": "/rollouts/5",
    "a rollout of 10,000": "/rollouts/6",
    "audit": "/audit",
    "API: 100 devices": "/api/v1/devices",
}


def processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def ask(connection: http.client.HTTPConnection, path: str, headers: dict[str, str], body: str | None = None) -> bytes:
    connection.request("GET" if body is None else "POST", path, body, headers)
    response = connection.getresponse()
    found = response.read()
    assert response.status in (200, 303), (path, response.status, found[:300])
    if cookie := response.headers.get_all("set-cookie"):
        headers["cookie"] = "; ".join(each.split(";")[0] for each in cookie)
    return found


def csrf_of(page: bytes) -> str:
    found = re.search(rb'name="csrf" value="([^"]+)"', page)
    assert found is not None
    return found[1].decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "tests.fleet.web.serve_story", "--devices", str(arguments.devices)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        assert service.stdin is not None
        story = json.loads(service.stdout.readline())
        host = urlsplit(story["url"]).netloc
        connection = http.client.HTTPConnection(host)
        headers = {"content-type": "application/x-www-form-urlencoded", "origin": story["url"]}
        form = {"csrf": csrf_of(ask(connection, "/sign-in", headers)), "name": "dag", "password": story["password"]}
        ask(connection, "/sign-in", headers, urlencode(form))
        csrf = csrf_of(ask(connection, "/devices", headers))
        ask(connection, "/rollouts/new", headers, urlencode({"csrf": csrf, "bundle": "smollm2@2.0.0", "where": "*"}))
        taken: dict[str, list[float]] = {name: [] for name in PAGES}
        for _ in range(arguments.rounds):
            for name, path in PAGES.items():
                begun = time.perf_counter()
                ask(connection, path.replace("{device}", story["device"]), headers)
                taken[name].append(1000 * (time.perf_counter() - begun))
        service.stdin.close()
        service.wait()
    load = os.getloadavg()[0]
    print(f"{arguments.devices:,} devices, {arguments.rounds} rounds, {processor()}; load {load:.1f}")
    for name, each in taken.items():
        print(f"  {name:<22} median {statistics.median(each):6.1f} ms, p95 {_p95(each):6.1f} ms")
    everything = [value for each in taken.values() for value in each]
    print(f"  {'all':<22} median {statistics.median(everything):6.1f} ms, p95 {_p95(everything):6.1f} ms (goal: 200)")
    return 0


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


if __name__ == "__main__":
    sys.exit(main())
