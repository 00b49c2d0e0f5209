"""Trees of ``/proc`` and ``/sys`` as machines show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

STAT = (
    "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 60 0 30 380 30 0 0 0 0 0\ncpu1 40 0 20 420 20 0 0 0 0 0\nbtime 1700000000\n"
)
LATER = (
    "cpu  190 0 60 800 50 0 0 0 0 0\ncpu0 150 0 40 380 30 0 0 0 0 0\ncpu1 40 0 20 520 20 0 0 0 0 0\nbtime 1700000000\n"
)
MEMINFO = "MemTotal:  4000 kB\nMemAvailable: 1000 kB\nSwapTotal: 2000 kB\nSwapFree: 500 kB\n"
NET = (
    "Inter-|   Receive  |  Transmit\n face |bytes packets\n"
    "    lo: 9 0 0 0 0 0 0 0 9 0 0 0 0 0 0 0\n  eth0: {got} 0 0 0 0 0 0 0 {sent} 0 0 0 0 0 0 0\n"
)

PC = {
    "proc/stat": STAT,
    "proc/loadavg": "0.50 1.25 2.00 1/300 4711\n",
    "proc/meminfo": MEMINFO,
    "proc/vmstat": "pswpin 10\npswpout 20\n",
    "proc/diskstats": "   8       0 sda 5 0 100 3 7 0 200 4 0 0 0\n   8       1 sda1 5 0 100 3 7 0 200 4 0 0 0\n",
    "proc/net/dev": NET.format(got=1000, sent=500),
    "proc/pressure/memory": "some avg10=1.50 avg60=0.00 total=9\nfull avg10=0.25 avg60=0.00 total=3\n",
    "proc/7/stat": "7 (a) b (c) S 1 1 1 0 -1 4 0 0 0 0 150 50 0 0 20 0 1 0 900 1 1\n",
    "proc/7/statm": "1000 300 100 1 0 200 0\n",
    "proc/7/smaps_rollup": "5000-7fff ---p 00000000 00:00 0 [rollup]\nRss: 1200 kB\nPss: 800 kB\nPss_Anon: 1 kB\n",
    "sys/block/sda/size": "1",
    "sys/class/hwmon/hwmon0/name": "coretemp",
    "sys/class/hwmon/hwmon0/temp1_input": "61500",
    "sys/class/hwmon/hwmon0/temp1_label": "Package id 0",
    "sys/class/hwmon/hwmon0/temp1_max": "100000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3600000",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4",
}

BOARD = {
    "proc/stat": STAT,
    "proc/meminfo": "MemTotal:  4000 kB\nMemAvailable: 1000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "82000",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "80000",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "-273000",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
    "sys/class/thermal/cooling_device0/cur_state": "2",
    "sys/class/thermal/cooling_device1/type": "pwm-fan",
    "sys/class/thermal/cooling_device1/cur_state": "4",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000",
}

RASPBERRY_PI_5 = {
    "proc/stat": STAT,
    "proc/meminfo": MEMINFO,
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "61300",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "hot",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "85000",
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/cur_state": "2",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal",
    "sys/class/hwmon/hwmon0/temp1_input": "61300",
    "sys/class/hwmon/hwmon0/temp1_crit": "110000",
    "sys/class/hwmon/hwmon1/name": "rp1_adc",
    "sys/class/hwmon/hwmon1/in1_input": "1473",
    "sys/class/hwmon/hwmon1/temp1_input": "55842",
    "sys/class/hwmon/hwmon2/name": "pwmfan",
    "sys/class/hwmon/hwmon2/fan1_input": "2981",
    "sys/class/hwmon/hwmon3/name": "rpi_volt",
    "sys/class/hwmon/hwmon3/in0_lcrit_alarm": "0",
    "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000",
}
"""Raspberry Pi OS with a kernel of 16k pages."""

ROCK_5 = {
    "proc/stat": STAT,
    "proc/meminfo": MEMINFO,
    "sys/class/thermal/thermal_zone0/type": "soc-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48076",
    "sys/class/thermal/thermal_zone1/type": "bigcore0-thermal",
    "sys/class/thermal/thermal_zone1/temp": "50846",
    "sys/class/thermal/thermal_zone1/trip_point_0_type": "passive",
    "sys/class/thermal/thermal_zone1/trip_point_0_temp": "85000",
    "sys/class/hwmon/hwmon0/name": "bigcore0_thermal",
    "sys/class/hwmon/hwmon0/temp1_input": "50846",
    "sys/class/hwmon/hwmon0/temp1_crit": "80000",
    "sys/class/hwmon/hwmon1/name": "nvme",
    "sys/class/hwmon/hwmon1/temp1_input": "39850",
    "sys/class/hwmon/hwmon1/temp1_label": "Composite",
    "sys/class/hwmon/hwmon1/temp1_max": "81850",
}
"""A board whose thermal zones say more than its chips, beside a disk that only hwmon knows."""


def plant(root: Path, *files: Mapping[str, str]) -> Path:
    """Write the files below ``root``."""
    for tree in files:
        for name, text in tree.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return root
