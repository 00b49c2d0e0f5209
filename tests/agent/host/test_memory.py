"""What memory there is, told by files as the kernel writes them and by this machine's own."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from agent.engine.memory import RESERVE, room_bytes, usable_bytes
from agent.host import memory
from agent.host.memory import available_memory, mapped_bytes, memory_kills, total_memory
from contract.errors import StoreBroken

MIB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 4,000 MiB, half of it available; groups are made below ``cgroup``."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {4000 * 1024} kB\nMemAvailable: {2000 * 1024} kB\n")
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    place = tmp_path / "cgroup" / own.strip("/")
    place.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP_ROOT", tmp_path / "cgroup")
    return place


def limit(place: Path, most: str, current: int, **stat: int) -> None:
    (place / "memory.max").write_text(f"{most}\n")
    (place / "memory.current").write_text(f"{current * MIB}\n")
    (place / "memory.stat").write_text("".join(f"{key} {value * MIB}\n" for key, value in {"anon": 1, **stat}.items()))


def test_this_machine_can_be_asked() -> None:
    assert 0 < available_memory() <= total_memory()


def test_without_a_group_the_machine_counts(kernel: Path) -> None:
    assert (total_memory(), available_memory()) == (4000 * MIB, 2000 * MIB)


def test_a_group_without_a_limit_is_none(kernel: Path) -> None:
    limit(kernel, "max", 3999)
    assert (total_memory(), available_memory()) == (4000 * MIB, 2000 * MIB)


def test_the_tightest_limit_counts(kernel: Path) -> None:
    limit(kernel, str(1000 * MIB), 300)
    assert (total_memory(), available_memory()) == (1000 * MIB, 700 * MIB)


def test_file_cache_is_no_use_of_a_group_however_often_it_was_read(kernel: Path) -> None:
    """After an installation a group is full of it to the limit: what was written was read back, so it is active."""
    limit(kernel, str(1000 * MIB), 1000, active_file=500, inactive_file=250, slab_reclaimable=50)
    assert available_memory() == 800 * MIB


def test_a_group_beyond_its_limit_has_nothing_left(kernel: Path) -> None:
    limit(kernel, str(1000 * MIB), 1100)
    assert available_memory() == 0


def test_limits_of_version_1_count_wherever_they_are_set(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("12:cpu,cpuacct:/other\n4:memory:/box/agent\n0::/\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    root = tmp_path / "cgroup" / "memory"
    for place, most in ((root / "box", 1000 * MIB), (root / "box" / "agent", 2**63 - 4096)):
        place.mkdir(parents=True)
        (place / "memory.limit_in_bytes").write_text(f"{most}\n")
        (place / "memory.usage_in_bytes").write_text(f"{900 * MIB}\n")
        stat = f"cache 1\ntotal_active_file {200 * MIB}\ntotal_inactive_file {100 * MIB}\n"
        (place / "memory.stat").write_text(stat)
    assert (total_memory(), available_memory()) == (1000 * MIB, 400 * MIB)
    # As in a container, where the group is the root of what can be seen.
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/docker/0123\n")
    for file in (root / "box").glob("memory.*"):
        file.rename(root / file.name)
    assert (total_memory(), available_memory()) == (1000 * MIB, 400 * MIB)


def test_a_kernel_that_does_not_say_is_an_error(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(StoreBroken, match="MemAvailable"):
        available_memory()


def test_room_is_what_mapped_weights_leave_and_a_predecessor_gives_back(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert usable_bytes() == 2000 * MIB * RESERVE
    assert room_bytes([]) == 2000 * MIB
    for mapped, leaving, room in ((1500, 0, 500), (2500, 0, 0), (2500, 1000, 500)):
        monkeypatch.setattr("agent.engine.memory.mapped_bytes", lambda folders, mapped=mapped: mapped * MIB)
        assert room_bytes([], leaving * MIB) == room * MIB


def test_mapped_files_are_found_before_they_are_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "with a blank", tmp_path / "with a blank, too"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * (3 * mmap.PAGESIZE))
    assert mapped_bytes([inside]) == 0
    with (inside / "weights").open("rb") as one, (outside / "weights").open("rb") as other:
        first = mmap.mmap(one.fileno(), 0, prot=mmap.PROT_READ)
        second = mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ)
        assert mapped_bytes([inside]) == 3 * mmap.PAGESIZE
        assert mapped_bytes([inside, outside]) == 6 * mmap.PAGESIZE
        first.close()
        second.close()


def test_what_a_process_makes_for_itself_is_anonymous() -> None:
    """In a process of its own: what others left behind in this one may be given back meanwhile."""
    text = (
        "from agent.host.memory import own_anonymous_bytes; before = own_anonymous_bytes();"
        "made = bytearray(64 << 20); print(own_anonymous_bytes() - before, len(made))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=True)
    grown, length = map(int, done.stdout.split())
    assert 50 * MIB < grown < 80 * MIB
    assert length == 64 * MIB


def test_the_kernel_counts_what_it_ends_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_kills() >= 0
    monkeypatch.setattr(memory, "_VMSTAT", tmp_path / "vmstat")
    assert memory_kills() == 0, "a kernel that does not count"
    (tmp_path / "vmstat").write_text("oom_killed 9\nallocstall 1\noom_kill 3\n")
    assert memory_kills() == 3
