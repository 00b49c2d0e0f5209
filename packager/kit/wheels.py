"""Wheels of the agent and all that it needs, for another machine, at the versions that are installed here."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from contract.errors import BuildRefused, SourceUnavailable, UsageError
from packager.kit.target import Target

DISTRIBUTION = "edge-bundle"
EXTRA = "agent"
PIP_SECONDS = 1800
"""Some 100 MB over a slow line."""

_PROJECT = Path(__file__).resolve().parents[2]
_SOURCES = (
    "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE", "contract", "edge_bundle", "packager",
    "agent", "systemd", "docs", "examples", "clients/js/README.md",
    "clients/node-red/README.md",
)  # fmt: skip


class Wheel(Struct, frozen=True):
    """A wheel file; ``installed_bytes`` is what its files take unpacked, before Python compiles them."""

    path: Path
    name: str
    version: str
    installed_bytes: int


def read_wheel(path: Path) -> Wheel:
    """Raises:
    BuildRefused: not a wheel.
    """
    parts = path.name.removesuffix(".whl").split("-")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        return Wheel(path, re.sub(r"[-_.]+", "-", parts[0]).lower(), parts[1], size)
    except (zipfile.BadZipFile, OSError, IndexError) as error:
        raise BuildRefused(f"{path.name} is not a wheel: {error}") from error


def own_wheel(given: Path | None, directory: Path) -> Path:
    """The wheel of this project in ``directory``: ``given``, or built from the checkout that we run from.

    Raises:
        UsageError: there is neither; BuildRefused: it cannot be built.
    """
    if given is not None:
        if not given.is_file():
            raise UsageError(f"{given} does not exist; --wheel wants the file edge_bundle-VERSION-py3-none-any.whl")
        return Path(shutil.copy2(given, directory))
    if not (_PROJECT / "pyproject.toml").is_file():
        raise UsageError("this packager was not installed from a checkout: give the agent's wheel with --wheel FILE")
    with tempfile.TemporaryDirectory(prefix="edge-kit-") as scratch:
        # A copy: setuptools leaves build/ and egg-info beside what it builds.
        source = Path(scratch) / "source"
        source.mkdir()
        for name in _SOURCES:
            _copy(_PROJECT / name, source / name)
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(source))
    (built,) = directory.glob("edge_bundle-*.whl")
    return built


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def fetch_dependencies(target: Target, wheel: Path, directory: Path) -> list[Wheel]:
    """Everything that the agent in ``wheel`` needs on ``target``, and pip itself, fetched into ``directory``.

    Raises:
        SourceUnavailable: pip could not resolve or fetch for that target.
    """
    with tempfile.TemporaryDirectory(prefix="edge-kit-") as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in installed_versions()))
        _pip(
            "download", "--dest", str(directory), "--constraint", str(constraints), *target.pip_options(),
            f"{wheel}[{EXTRA}]", "pip",
        )  # fmt: skip
    return [read_wheel(path) for path in sorted(directory.glob("*.whl"))]


def installed_versions() -> Iterator[str]:
    """``name==version`` of all that is installed here: what this workstation tested is what the device gets."""
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        # A local version (+cpu) names a build for this machine.
        version = distribution.version.partition("+")[0]
        if name and name.lower().replace("_", "-") != DISTRIBUTION:
            yield f"{name}=={version}"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailable(f"pip {arguments[0]} did not finish within {PIP_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        raise SourceUnavailable(f"pip {arguments[0]} failed: {_complaint(error.stdout, error.stderr)}") from error


def _complaint(stdout: str, stderr: str) -> str:
    """What pip could not do, out of all that it said."""
    _, conflict, causes = stdout.partition("The conflict is caused by:")
    if conflict:
        return "; ".join(line.strip() for line in causes.strip().split("\n\n")[0].splitlines())
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    return " ".join(errors[-2:]) or stderr.strip()[-300:] or "it said nothing"
