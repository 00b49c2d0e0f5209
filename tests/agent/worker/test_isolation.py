"""What an isolated process can still do, tried in a real one."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agent.worker.isolation import MAX_THREADS, SYSTEM_PATHS, allocated
from agent.worker.seccomp import AUDIT_ARCH, DENIED, EXAMINED, deny_program
from contract.bundle.device_plan import WORKER_BYTES, Box, plan_device
from contract.bundle.footprint import Footprint
from tests.contract.bundle.test_device_plan import GIB, LLAMA_1B, PHI, PHI_BYTES, PHI_INT8

PROBE = Path(__file__).with_name("isolated_probe.py")


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("isolated")
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "file").write_bytes(b"original")
    (folder / "secret").write_bytes(b"secret")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
        listening.listen()
        ran = subprocess.run(
            [sys.executable, str(PROBE), str(bundle), str(folder / "secret"), str(folder / "s")],
            capture_output=True,
            timeout=120,
            check=True,
        )
    assert (bundle / "file").read_bytes() == b"original"
    found: dict[str, str] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize(
    "needed",
    [
        *("read the bundle", "list the bundle", "unix pair", "thread", "signal itself", "ask for its own limits"),
        "read how long it waited for a core",
    ],
)
def test_what_a_worker_needs_works(probed: dict[str, str], needed: str) -> None:
    assert probed[needed] == "done"


@pytest.mark.parametrize(
    "denied",
    [
        *(
            "tcp",
            "udp",
            "udp over ipv6",
            "netlink",
            "connect to a unix socket",
            "write to an address",
            "write a message",
        ),
        *("execute", "fork without end", "unshare", "eat shared memory", "memory without a name"),
        *("mode of the secret", "mode of the bundle", "owner of the bundle", "times of the bundle"),
        *("attributes of the bundle", "kill the parent", "weaken the parent", "pin the parent", "limit the parent"),
    ],
)
def test_seccomp_denies(probed: dict[str, str], denied: str) -> None:
    if "seccomp" not in probed["level"]:
        pytest.skip("this kernel has no seccomp filters")
    assert probed[denied] == "EPERM"


@pytest.mark.parametrize(
    "denied",
    [
        *("write the bundle", "create in the bundle", "remove from the bundle"),
        *("read elsewhere", "read accounts", "write in /tmp"),
    ],
)
def test_landlock_denies(probed: dict[str, str], denied: str) -> None:
    if "landlock" not in probed["level"]:
        pytest.skip("this kernel has no Landlock")
    assert probed[denied] in ("EACCES", "EPERM")


def test_memory_ends_before_the_machines_does(probed: dict[str, str]) -> None:
    assert "rlimits" in probed["level"]
    assert probed["eat memory"] == "ENOMEM"
    assert int(probed["oom score"]) >= 500
    assert MAX_THREADS < int(probed["threads"]) < 2**20


@pytest.mark.parametrize("ram", [1, 2, 3.5, 3.7, 4, 7.6, 8, 16])
@pytest.mark.parametrize("footprint", [PHI, PHI_INT8, LLAMA_1B])
def test_a_worker_may_allocate_what_the_plan_gives_it(ram: float, footprint: Footprint) -> None:
    """Phi-3.5-mini on 4 GiB was planned 3.6 GiB and allowed 3.6, less a little: it did not load."""
    total = int(ram * GIB)
    plan = plan_device(footprint, PHI_BYTES, Box(total, 4))
    cache = plan.kv.slots * plan.kv.length * footprint.kv_token
    if plan.fits:
        assert WORKER_BYTES + footprint.weights + cache + plan.kv.prefix_bytes <= allocated(total)
    assert allocated(total) < total


def test_landlock_keeps_signals_in(probed: dict[str, str]) -> None:
    if not any(f"landlock {abi}" in probed["level"] for abi in range(6, 20)):
        pytest.skip("this kernel's Landlock does not know signals")
    assert probed["signal the parent"] == "EPERM"


@pytest.mark.parametrize("machine", sorted(AUDIT_ARCH))
def test_the_program_is_whole_and_jumps_stay_inside(machine: str) -> None:
    program = deny_program(machine, 1)
    assert program is not None
    steps = list(struct.iter_unpack("=HBBI", program))
    assert len(steps) < 4096
    for place, (code, when_true, when_false, _) in enumerate(steps):
        if code & 0x07 == 0x05:
            assert place + 1 + max(when_true, when_false) < len(steps)
    assert steps[-1][0] == 0x06


def test_an_unknown_machine_gets_no_program() -> None:
    assert deny_program("riscv64", 1) is None


def test_each_number_is_denied_once() -> None:
    for column in (0, 1):
        numbers = [pair[column] for pair in (*DENIED.values(), *EXAMINED.values()) if pair[column] is not None]
        assert len(numbers) == len(set(numbers))
    assert os.uname().machine in AUDIT_ARCH or deny_program(os.uname().machine, 1) is None


WATCHER = """
import sys
from agent.worker.isolation import isolate
print(isolate([]), flush=True)
for path in sys.stdin.read().split():
    open(path, "rb").read(64)
"""


@pytest.mark.root
def test_what_the_kernel_says_of_itself_stays_readable_where_memory_is_short() -> None:
    said = [path for path in SYSTEM_PATHS if path.startswith("/proc/")]
    files = [f"{path}/status" if Path(path).is_dir() else path for path in said]
    command = [sys.executable, "-c", WATCHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        level = watcher.stdout.readline().decode()
        # The cached names, as the kernel drops them by itself where memory is short.
        Path("/proc/sys/vm/drop_caches").write_text("2")
        _, faults = watcher.communicate(" ".join(files).encode(), timeout=120)
    assert "landlock" in level
    assert (watcher.returncode, faults.decode()) == (0, ""), files
