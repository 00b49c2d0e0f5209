"""What the device has, and what a bundle requires of it."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.facts import Host, check_requires, isa, measure_host, satisfies
from agent.host.memory import total_memory
from contract.bundle.manifest import Requires
from contract.errors import BundleRefused
from contract.reasons import Reason

HOST = Host(
    arch="x86_64",
    isa=frozenset({"avx2", "fma"}),
    ram_bytes=2 << 30,
    disk_bytes=10 << 30,
    runtimes={"onnxruntime": "1.32.0", "onnxruntime-genai": "0.18.0", "edge-bundle": "0.1.0"},
)
FITS = Requires(["x86_64"], ["avx512_vnni", "avx2"], 1 << 30, 1 << 30, ">=1.31.0,<2", ">=0.18", ">=0.1.0")


def test_this_device_can_be_measured(tmp_path: Path) -> None:
    host = measure_host(tmp_path)
    assert host.arch == platform.machine()
    assert host.ram_bytes == total_memory() > 0
    assert {"onnxruntime", "onnxruntime-genai", "edge-bundle"} == set(host.runtimes)


def test_probed_instruction_sets_are_those_the_kernel_names() -> None:
    """On a machine that hides and invents nothing the two agree; the probe must not see what is not there."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    found = isa.present_sets()
    assert found
    assert found <= flags


def test_a_device_that_has_all_of_it_fits() -> None:
    check_requires(FITS, HOST, room_bytes=1 << 30)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": ["aarch64"]}, Reason.REQUIRES_ARCH),
        ({"arch": []}, Reason.REQUIRES_ARCH),
        ({"isa_any": ["avx512_vnni"]}, Reason.REQUIRES_ISA),
        ({"min_ram_bytes": (2 << 30) + 1}, Reason.REQUIRES_RAM),
        ({"min_disk_bytes": (10 << 30) + 1}, Reason.REQUIRES_DISK),
        ({"onnxruntime": ">=1.33"}, Reason.REQUIRES_RUNTIME),
        ({"onnxruntime": ">=1,<1.32"}, Reason.REQUIRES_RUNTIME),
        ({"onnxruntime_genai": ">=0.19"}, Reason.REQUIRES_RUNTIME),
        ({"agent": ">=0.2"}, Reason.REQUIRES_AGENT),
        ({"agent": "~=0.1"}, Reason.REQUIRES_UNKNOWN),
    ],
)
def test_what_is_lacking_is_named(change: dict[str, object], reason: Reason) -> None:
    with pytest.raises(BundleRefused) as refused:
        check_requires(msgspec.structs.replace(FITS, **change), HOST)
    assert refused.value.reason is reason
    assert refused.value.field is not None
    assert refused.value.field.startswith("requires")


def test_a_quota_is_a_small_disk() -> None:
    with pytest.raises(BundleRefused) as refused:
        check_requires(FITS, HOST, room_bytes=(1 << 30) - 1)
    assert refused.value.reason is Reason.REQUIRES_DISK


def test_a_runtime_that_is_not_installed_fits_nothing() -> None:
    bare = msgspec.structs.replace(HOST, runtimes={"edge-bundle": "0.1.0"})
    with pytest.raises(BundleRefused):
        check_requires(FITS, bare)


@pytest.mark.parametrize(
    ("installed", "bounds", "holds"),
    [
        ("1.32.0", ">=1.31.0", True),
        ("1.31", ">=1.31.0", True),
        ("1.31.0+cpu", ">=1.31", True),
        ("2.0.0", ">=1.31.0,<2", False),
        ("1.9.0", ">=1.31.0", False),
        ("", ">=1", False),
        (None, ">=1", False),
        (None, "", True),
        ("x", ">=0", False),
    ],
)
def test_version_bounds(installed: str | None, bounds: str, holds: bool) -> None:
    assert satisfies(installed, bounds) is holds


@given(st.text(max_size=40))
def test_bounds_that_are_not_understood_are_never_met(bounds: str) -> None:
    try:
        met = satisfies("1.0", bounds)
    except BundleRefused as refused:
        assert refused.reason is Reason.REQUIRES_UNKNOWN
    else:
        assert not bounds.strip() or met in (True, False)
