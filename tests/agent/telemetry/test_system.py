"""What is there is right, what is not there is absent, whatever the kernel, container or board."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from agent.host import kernel
from agent.telemetry.rates import Rates
from agent.telemetry.samples import Frequency, Process, Swap
from agent.telemetry.system import SelfReported, SystemSampler
from tests.agent.telemetry.trees import BOARD, LATER, NET, PC, RASPBERRY_PI_5, ROCK_5, plant

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


class Machine:
    """A sampler on a planted tree, with a clock that goes on ten seconds with every sample."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 0.0
        self.sampler = SystemSampler(
            root, proc=root / "proc", sys=root / "sys", clock=lambda: self.now, wall=lambda: 1.0
        )  # fmt: skip

    def sample(self) -> dict[str, object]:
        self.now += 10
        found: dict[str, object] = msgspec.to_builtins(self.sampler.sample({7: "agent"}))
        return found


def test_interfaces_of_containers_are_left_out() -> None:
    names = ["lo", "eth0", "wlan0", "veth1a2b3c", "docker0", "br-0123abcd", "cali77", "enp1s0", "wwan0"]
    text = "Inter-|\n face |\n" + "".join(f"{name}: 1 0 0 0 0 0 0 0 2 0 0\n" for name in names)
    assert list(kernel.network_bytes(text)) == ["eth0", "wlan0", "enp1s0", "wwan0"]
    many = "Inter-|\n face |\n" + "".join(f"tun{n}: 1 0 0 0 0 0 0 0 2 0 0\n" for n in range(500))
    assert len(kernel.network_bytes(many)) == kernel.MAX_INTERFACES


def test_sample_names_our_processes_and_this_machine(tmp_path: Path) -> None:
    sample = SystemSampler(tmp_path).sample({os.getpid(): "agent", 2**22 + 1: "gone"})
    assert sample.memory is not UNSET
    assert sample.memory.total == psutil.virtual_memory().total
    assert sample.boot == int(psutil.boot_time())
    (own,) = sample.processes
    assert own.name == "agent"
    assert own.pss is not UNSET
    assert 0 < own.pss <= own.rss * 1.1
    assert sample.disk is not UNSET


def test_everything_of_a_pc_is_read(tmp_path: Path) -> None:
    machine = Machine(plant(tmp_path, PC))
    first = machine.sampler.sample({7: "agent"})
    machine.now += 10
    plant(
        tmp_path,
        {
            "proc/stat": LATER,
            "proc/vmstat": "pswpin 10\npswpout 30\n",
            "proc/diskstats": "8 0 sda 5 0 120 3 7 0 200 4 0 0 0\n",
            "proc/net/dev": NET.format(got=3000, sent=500),
            "proc/7/stat": PC["proc/7/stat"].replace(" 150 50 ", f" 150 {50 + TICK} "),
        },
    )
    second = machine.sampler.sample({7: "agent"})
    assert (second.at, second.boot, second.load) == (1.0, 1700000000, [0.5, 1.25, 2.0])
    assert first.cpu is UNSET
    assert msgspec.to_builtins(second.cpu) == {"percent": 100.0, "cores": [100.0, 0.0]}
    assert msgspec.to_builtins(second.memory) == {"total": 4096000, "available": 1024000}
    assert second.swap == Swap(2048000, 1536000, 10 * PAGE, 30 * PAGE, 0.0, float(PAGE))
    assert second.disk is not UNSET
    assert (second.disk.read_bytes, second.disk.write_bytes, second.disk.read_per_second) == (61440, 102400, 1024.0)
    assert second.network is not UNSET
    assert list(second.network) == ["eth0"]
    assert (second.network["eth0"].received_per_second, second.network["eth0"].sent_per_second) == (200.0, 0.0)
    assert msgspec.to_builtins(second.pressure) == {"memory": {"some": 1.5, "full": 0.25}}
    assert second.temperatures == {"coretemp.Package id 0": 61.5}
    assert second.temperature_limits == {"coretemp.Package id 0": 100.0}
    assert second.frequency_mhz == Frequency(1800, 3600)
    assert second.throttled == 7
    assert second.throttling is UNSET
    assert second.processes == [Process("agent", 7, 300 * PAGE, 800 * 1024, 10.0)]


def test_a_board_has_zones_and_says_that_it_throttles(tmp_path: Path) -> None:
    sample = Machine(plant(tmp_path, BOARD)).sample()
    assert sample["temperatures"] == {"cpu-thermal.0": 82.0}
    assert sample["temperature_limits"] == {"cpu-thermal.0": 80.0}
    assert sample["frequency_mhz"] == {"current": 600}
    assert sample["throttling"] is True
    assert not sample.keys() & {"swap", "throttled", "network", "pressure", "load"}


@pytest.mark.parametrize("soc", ["soc/soc", "soc@107c000000/soc@107c000000"])
@pytest.mark.parametrize(
    ("bits", "slowed", "low"),
    [
        ("50005", True, True),
        ("0x50000", False, False),
        ("0", False, False),
        ("1", False, True),
        ("2", True, False),
        ("4", True, False),
        ("80008", True, False),
    ],
)
def test_firmware_of_a_raspberry_pi_tells_now_from_history(
    tmp_path: Path, soc: str, bits: str, slowed: bool, low: bool
) -> None:
    plant(tmp_path, {f"sys/devices/platform/{soc}:firmware/get_throttled": bits})
    sample = Machine(tmp_path).sample()
    assert (sample["throttling"], sample["undervoltage"]) == (slowed, low)


def test_everything_of_a_raspberry_pi_5_is_read(tmp_path: Path) -> None:
    machine = Machine(plant(tmp_path, RASPBERRY_PI_5))
    sample = machine.sample()
    assert sample["temperatures"] == {"cpu_thermal.temp1": 61.3, "rp1_adc.temp1": 55.8}
    assert sample["temperature_limits"] == {"cpu_thermal.temp1": 85.0}
    assert (sample["throttling"], sample["undervoltage"]) == (False, False)
    plant(tmp_path, {"sys/class/hwmon/hwmon3/in0_lcrit_alarm": "1"})
    sample = machine.sample()
    assert (sample["throttling"], sample["undervoltage"]) == (False, True)


def test_zones_and_chips_are_read_together_and_twins_have_the_lower_limit(tmp_path: Path) -> None:
    sample = Machine(plant(tmp_path, ROCK_5)).sample()
    assert sample["temperatures"] == {"soc-thermal.0": 48.1, "bigcore0_thermal.temp1": 50.8, "nvme.Composite": 39.9}
    assert sample["temperature_limits"] == {"bigcore0_thermal.temp1": 80.0, "nvme.Composite": 81.8}
    assert "undervoltage" not in sample


def test_a_machine_that_shows_nothing_gives_an_empty_sample(tmp_path: Path) -> None:
    sample = Machine(tmp_path).sample()
    assert sample.keys() == {"at", "disk", "processes"}
    assert sample["processes"] == []


@pytest.mark.parametrize("name", sorted(PC))
@pytest.mark.parametrize("text", ["", "\n", "nonsense", "-1", "cpu x\n", "99999999999"])
def test_files_written_in_another_way_never_break_a_sample(tmp_path: Path, name: str, text: str) -> None:
    machine = Machine(plant(tmp_path, PC, {name: text}))
    machine.sample()
    sample = machine.sample()
    if name == "sys/class/hwmon/hwmon0/temp1_input" and text != "-1":
        assert "temperatures" not in sample


def test_a_counter_that_begins_anew_has_no_rate_and_the_next_one_is_right(tmp_path: Path) -> None:
    machine = Machine(plant(tmp_path, PC))
    rates = []
    for got in (1000, 2000, 50, 1050):
        plant(tmp_path, {"proc/net/dev": NET.format(got=got, sent=0)})
        network = machine.sample()["network"]
        assert isinstance(network, dict)
        rates.append(network["eth0"].get("received_per_second"))
    assert rates == [None, 100.0, None, 100.0]


def test_a_process_that_may_not_be_looked_into_speaks_for_itself(tmp_path: Path) -> None:
    machine = Machine(plant(tmp_path, PC))
    told = {7: SelfReported("agent", 1, 1, 1.0, 0.0), 9: SelfReported("worker m@1.0.0", 5000, 0, 10.0, 3.0)}
    first = machine.sampler.sample({7: "agent"}, told).processes
    # The kernel's word counts before its own; its processor time is known from the second word on.
    assert [process.name for process in first] == ["agent", "worker m@1.0.0"]
    assert first[0].rss == 300 * PAGE
    assert first[1] == Process("worker m@1.0.0", 9, 5000)
    told = {9: SelfReported("worker m@1.0.0", 6000, 4000, 12.5, 8.0)}
    assert machine.sampler.sample({}, told).processes == [Process("worker m@1.0.0", 9, 6000, 4000, 50.0)]


def test_another_process_with_the_same_id_starts_without_a_rate(tmp_path: Path) -> None:
    machine = Machine(plant(tmp_path, PC))
    machine.sample()
    plant(tmp_path, {"proc/7/stat": PC["proc/7/stat"].replace(" 900 ", " 5000 ").replace(" 150 ", " 400 ")})
    processes = machine.sample()["processes"]
    assert isinstance(processes, list)
    assert "cpu_percent" not in processes[0]


@given(st.lists(st.integers(0, 1000), min_size=2))
def test_rates_are_never_negative_and_a_missed_round_forgets(values: list[int]) -> None:
    rates = Rates()
    for at, value in enumerate(values):
        found = rates.rate("x", value, float(at))
        rates.end_round()
        if at and value >= values[at - 1]:
            assert found == value - values[at - 1]
        else:
            assert found is None
    rates.end_round()
    assert rates.rate("x", 2000, 1e9) is None
