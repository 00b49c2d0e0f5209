"""Which instruction sets this CPU really executes: asked by executing them, in a child process.

A flag in ``/proc/cpuinfo`` is a name; emulators, hypervisors and kernels have been known to show names that do not
work and to hide ones that do. ``python -m agent.host.isa`` runs one instruction of each set in a process of its own (a
missing one ends it with SIGILL) and prints what worked as a JSON list. Names are those of ``/proc/cpuinfo``.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

from contract.errors import StoreBroken

PROBE_SECONDS = 120.0
"""A dozen forks take milliseconds; a busy box that swaps may need half a minute to start an interpreter."""

_X86_RETURN = bytes.fromhex("c5f877c3")  # vzeroupper; ret
_X86: dict[str, bytes] = {
    "sse4_1": bytes.fromhex("660f3840c0c3"),  # pmulld xmm0, xmm0; ret (no vzeroupper: AVX may be missing)
    "avx": bytes.fromhex("c5fc58c0") + _X86_RETURN,  # vaddps ymm0, ymm0, ymm0
    "f16c": bytes.fromhex("c4e27d13c0") + _X86_RETURN,  # vcvtph2ps ymm0, xmm0
    "fma": bytes.fromhex("c4e27d98c0") + _X86_RETURN,  # vfmadd132ps ymm0, ymm0, ymm0
    "avx2": bytes.fromhex("c5fdfec0") + _X86_RETURN,  # vpaddd ymm0, ymm0, ymm0
    "avx_vnni": bytes.fromhex("c4e27d50c0") + _X86_RETURN,  # {vex} vpdpbusd ymm0, ymm0, ymm0
    "avx512f": bytes.fromhex("62f17d48fec0") + _X86_RETURN,  # vpaddd zmm0, zmm0, zmm0
    "avx512bw": bytes.fromhex("62f17d48fcc0") + _X86_RETURN,  # vpaddb zmm0, zmm0, zmm0
    "avx512vl": bytes.fromhex("62f17d28fec0") + _X86_RETURN,  # {evex} vpaddd ymm0, ymm0, ymm0
    "avx512_vnni": bytes.fromhex("62f27d4850c0") + _X86_RETURN,  # vpdpbusd zmm0, zmm0, zmm0
    "avx512_bf16": bytes.fromhex("62f27e4852c0") + _X86_RETURN,  # vdpbf16ps zmm0, zmm0, zmm0
}
_ARM_RETURN = bytes.fromhex("c0035fd6")  # ret
_ARM: dict[str, bytes] = {
    "asimd": bytes.fromhex("0084a04e") + _ARM_RETURN,  # add v0.4s, v0.4s, v0.4s
    "asimdhp": bytes.fromhex("0014404e") + _ARM_RETURN,  # fadd v0.8h, v0.8h, v0.8h
    "asimddp": bytes.fromhex("0094804e") + _ARM_RETURN,  # sdot v0.4s, v0.16b, v0.16b
    "i8mm": bytes.fromhex("00a4804e") + _ARM_RETURN,  # smmla v0.4s, v0.16b, v0.16b
    "bf16": bytes.fromhex("00fc406e") + _ARM_RETURN,  # bfdot v0.4s, v0.8h, v0.8h
    "sve": bytes.fromhex("0000a004") + _ARM_RETURN,  # add z0.s, z0.s, z0.s
}
_PROBES = {"x86_64": _X86, "aarch64": _ARM}


def architecture() -> str:
    """``x86_64``, ``aarch64``, or whatever the kernel calls this machine."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def read_cpuinfo() -> str:
    """What ``/proc/cpuinfo`` says; empty where it cannot be read."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ""


def present_sets() -> frozenset[str]:
    """The instruction sets that work here, by probing in a child process.

    Raises:
        StoreBroken: the probe could not be run; nothing is known then.
    """
    command = [sys.executable, "-m", "agent.host.isa"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=True)
        return frozenset(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise StoreBroken(f"the instruction sets of this CPU could not be probed: {error}") from error


def _executes(code: bytes) -> bool:
    """Whether ``code`` runs to its end, tried in a fork."""
    child = os.fork()
    if child == 0:
        # Mapped from a file without write permission: allowed where writable and executable memory is not.
        handle = os.memfd_create("isa-probe")
        os.write(handle, code)
        region = mmap.mmap(handle, len(code), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
        address = _address(region)
        ctypes.CFUNCTYPE(None)(address)()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def _address(region: mmap.mmap) -> int:
    # A read-only mapping gives no writable buffer, so ctypes cannot take its address; the C library can.
    libc = ctypes.PyDLL(None)
    view = ctypes.py_object(region)
    buffer = (ctypes.c_byte * 80)()  # larger than Py_buffer on every platform
    if libc.PyObject_GetBuffer(view, buffer, 0) != 0:
        os._exit(1)
    return ctypes.c_void_p.from_buffer(buffer).value or 0


def _main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGILL, signal.SIGSEGV):
        signal.signal(number, signal.SIG_DFL)
    probes = _PROBES.get(architecture(), {})
    print(json.dumps([name for name, code in probes.items() if _executes(code)]))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
