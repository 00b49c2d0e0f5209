"""The archive and its installer: same bytes each time, damage and wrong machines refused in one sentence."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from contract.errors import BuildRefused, UsageError
from packager.cli import main
from packager.kit.archive import Kit, read_config, read_root, write_kit
from packager.kit.target import Target, check_target
from packager.kit.wheels import installed_versions, read_wheel

ROOT = b'{"signed": {"_type": "root"}, "signatures": [{}]}'
HERE = "aarch64" if platform.machine() == "aarch64" else "x86_64"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_wheel(directory: Path, name: str = "edge_bundle", version: str = "0.1.0") -> Path:
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("agent/__init__.py", "x" * 1000)
    return path


def make_kit(tmp_path: Path, *, arch: str = HERE, python: str = PYTHON) -> Kit:
    wheels = [read_wheel(make_wheel(tmp_path)), read_wheel(make_wheel(tmp_path, "other"))]
    return write_kit(tmp_path / "kit.tar", check_target(arch, python), wheels, root=ROOT, config=b'device = "d"\n')


def unpack(kit: Kit, directory: Path) -> Path:
    with tarfile.open(kit.file) as archive:
        archive.extractall(directory, filter="data")
    (top,) = directory.iterdir()
    return top


def install(top: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(top / "install.sh")], env={**os.environ, "PREFIX": str(tmp_path / "prefix"), "NO_SETUP": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_same_inputs_give_the_same_bytes_with_nothing_of_this_workstation(tmp_path: Path) -> None:
    first = make_kit(tmp_path).file.read_bytes()
    assert make_kit(tmp_path).file.read_bytes() == first
    with tarfile.open(tmp_path / "kit.tar") as archive:
        assert {(member.uid, member.uname, member.mtime) for member in archive} == {(0, "", 0)}


def test_kit_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    top = unpack(make_kit(tmp_path), tmp_path / "out")
    assert {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()} == {
        "SHA256SUMS", "agent.toml", "install.sh", "kit.json", "root.json",
        "wheels/edge_bundle-0.1.0-py3-none-any.whl", "wheels/other-0.1.0-py3-none-any.whl",
    }  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=top, check=True, capture_output=True)
    assert json.loads((top / "kit.json").read_text())["arch"] == HERE


def test_installer_refuses_a_damaged_kit(tmp_path: Path) -> None:
    top = unpack(make_kit(tmp_path), tmp_path / "out")
    wheel = next((top / "wheels").glob("other*"))
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"?")
    done = install(top, tmp_path)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_installer_refuses_another_machine(tmp_path: Path) -> None:
    other = "aarch64" if HERE == "x86_64" else "x86_64"
    done = install(unpack(make_kit(tmp_path, arch=other), tmp_path / "out"), tmp_path)
    assert done.returncode == 1
    assert f"this kit is for {other}" in done.stderr


def test_installer_names_the_python_that_is_missing(tmp_path: Path) -> None:
    done = install(unpack(make_kit(tmp_path, python="3.99"), tmp_path / "out"), tmp_path)
    assert done.returncode == 1
    assert "Python 3.99 is not here" in done.stderr


def test_a_kit_without_the_agent_is_none(tmp_path: Path) -> None:
    with pytest.raises(BuildRefused):
        write_kit(
            tmp_path / "kit", Target("x86_64"), [read_wheel(make_wheel(tmp_path, "other"))], root=ROOT, config=b""
        )


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"signed": {"_type": "targets"}, "signatures": [{}]}'])
def test_only_signed_root_metadata_is_a_root(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "root.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="--root-json"):
        read_root(path)


def test_a_config_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("device = ")
    with pytest.raises(UsageError, match="TOML"):
        read_config(path)


def test_pip_is_told_every_older_platform_that_fits() -> None:
    options = Target("aarch64", "3.12").pip_options()
    assert "manylinux_2_31_aarch64" in options
    assert "manylinux_2_17_aarch64" in options
    assert "manylinux_2_16_aarch64" not in options
    assert "manylinux1_x86_64" in Target("x86_64").pip_options()


@pytest.mark.parametrize(("arch", "python"), [("armv7l", "3.11"), ("x86_64", "3.9"), ("x86_64", "2"), ("x86_64", "")])
def test_machines_without_wheels_are_refused(arch: str, python: str) -> None:
    with pytest.raises(UsageError):
        check_target(arch, python)


def test_versions_of_this_workstation_go_to_the_device() -> None:
    pins = dict(line.split("==") for line in installed_versions())
    assert "onnxruntime" in pins
    assert not any("+" in version for version in pins.values())
    assert not {"edge-bundle", "edge_bundle"} & set(pins)


def test_a_mistake_on_the_command_line_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["edge-packager", "agent-kit", "--arch", HERE, "--out", str(tmp_path / "k"), "--config", "nowhere.toml"]
    monkeypatch.setattr(sys, "argv", [*argv, "--root-json", str(tmp_path / "nowhere.json")])
    assert main() == 2
    assert capsys.readouterr().err.count("\n") == 1
