"""Processor, runtime, memory, clock, and what the kernel offers to shut workers in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from agent.diagnosis.finding import Finding
from agent.host import isa
from agent.host.cores import computing_cores
from agent.host.memory import available_memory, total_memory
from agent.host.sensors import Sensors

IMPORT_SECONDS = 120.0
"""Importing 40 MB of libraries from a slow card."""

FAST_SETS = {"x86_64": "avx2", "aarch64": "asimddp"}
"""Without these the runtime's INT4 kernels fall back to code that is several times slower."""

MEMORY_CONTROLLER_FIX = (
    "add cgroup_enable=memory to the kernel's command line (Raspberry Pi OS: /boot/firmware/cmdline.txt) and restart"
)

_IMPORT = """
import json, onnxruntime, onnxruntime_genai
print(json.dumps({"onnxruntime": onnxruntime.__version__, "onnxruntime-genai": onnxruntime_genai.__version__}))
"""
_ISOLATE = "from agent.worker.isolation import isolate; print(isolate([]))"


def processor() -> Finding:
    architecture, sets = isa.architecture(), isa.present_sets()
    allowed = os.sched_getaffinity(0)
    fast_cores = len(computing_cores(allowed))
    cores = f"{len(allowed)} cores" + (
        f" of which the {fast_cores} fast ones compute" if fast_cores < len(allowed) else ""
    )
    text = f"{architecture}, {cores}, executes {' '.join(sorted(sets)) or 'nothing special'}"
    fast = FAST_SETS.get(architecture)
    if fast is None:
        return Finding("processor", "bad", text, "the runtimes exist for x86_64 and aarch64 only")
    if fast not in sets:
        return Finding("processor", "note", f"{text}; without {fast} models run several times slower")
    return Finding("processor", "ok", text)


def runtime() -> Finding:
    """Import it in a child: wheels for another processor end with an illegal instruction."""
    done = _python(_IMPORT)
    if done is None:
        return Finding("runtime", "bad", f"importing it takes more than {IMPORT_SECONDS:.0f} s", "look at the disk")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return Finding("runtime", "bad", f"importing it ends with {name}", "this processor cannot run these wheels")
    if done.returncode != 0:
        output = done.stderr.strip().splitlines()
        return Finding(
            "runtime", "bad", output[-1] if output else "it does not import", "install the agent's kit again"
        )
    versions = json.loads(done.stdout)
    return Finding("runtime", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def isolation() -> Finding:
    """What a worker could give up here, tried in a child."""
    done = _python(_ISOLATE)
    reached = done.stdout.strip() if done is not None and done.returncode == 0 else "none"
    if "seccomp" in reached and "landlock" in reached:
        return Finding("isolation", "ok", reached)
    fix = "a kernel of 5.13 or newer with Landlock shuts models in; under systemd the unit does most of it"
    return Finding("isolation", "note", reached, fix)


def memory(sys_root: Path = Path("/sys")) -> Finding:
    total, free = total_memory(), available_memory()
    text = f"{free / 1e9:.1f} GB of {total / 1e9:.1f} GB available"
    if free < 200e6:
        return Finding("memory", "bad", text, "stop something else, or run a smaller model")
    if not _bounds_memory(sys_root / "fs/cgroup"):
        return Finding("memory", "warning", f"{text}; the kernel bounds no group's memory: limits of units and "
                       "containers are without effect", MEMORY_CONTROLLER_FIX)  # fmt: skip
    return Finding("memory", "ok", text)


def _bounds_memory(groups: Path) -> bool:
    """Whether the kernel's memory controller is on; where no control groups can be seen, it is not said to be off."""
    try:
        return "memory" in (groups / "cgroup.controllers").read_text("ascii").split()
    except OSError:
        return (groups / "memory").is_dir() or not groups.is_dir() or not any(groups.iterdir())


def power(sys_root: Path = Path("/sys")) -> list[Finding]:
    """The supply of boards that measure it; others have no such line."""
    low = Sensors(sys_root).undervoltage()
    if low is None:
        return []
    if low:
        return [Finding("power", "warning", "the supply's voltage is too low: the board slows down and may fail", (
            "take the maker's power supply (a Raspberry Pi 5 needs 5 A) and a short cable; unplug what draws from USB"
        ))]  # fmt: skip
    return [Finding("power", "ok", "the supply's voltage is enough")]


def clock(floor_seconds: int) -> Finding:
    """Against what was seen signed: before that it is certainly wrong, far beyond it proves nothing."""
    from contract.trust.clock import EARLIEST, kernel_clock_synchronised

    now, floor = int(time.time()), max(floor_seconds, EARLIEST)
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < floor:
        before = time.strftime("%Y-%m-%d", time.gmtime(floor))
        fix = (
            f"set it, or let NTP; until then expiry is judged as of {before}. If {before} is in the future: "
            "edge-agent doctor --reset-clock-floor"
        )
        return Finding("clock", "bad", f"{text} is before {before}, which has certainly been", fix)
    if not kernel_clock_synchronised():
        return Finding("clock", "note", f"{text}, not synchronised: expiry is judged by the later of it and its floor")
    return Finding("clock", "ok", f"{text}, synchronised")


def _python(script: str) -> subprocess.CompletedProcess[str] | None:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    try:
        return subprocess.run(
            [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False,
            env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
