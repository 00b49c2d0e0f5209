"""The Python packages of ``requirements.lock`` for aarch64, as an environment that only aarch64 can run."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from packager.kit.target import Target
from tests.arm.debian import COMPILES, PYTHON, kept
from tests.kept import ROOT

LOCK = ROOT / "requirements.lock"
FETCH_SECONDS = 3600

TORCH = "torch==2.10.0"
"""The last one whose wheel for aarch64 on PyPI needs no CUDA; later ones without it lie on torch's own index."""


def environment(cache: Path) -> Path:
    """A virtual environment for aarch64 with this checkout in it, used at its own path; made once a lock file."""
    locked = [line for line in LOCK.read_text("utf-8").splitlines() if not line.startswith("torch==")]
    text = "\n".join([*locked, TORCH, ""])
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    place = cache / f"venv-{key}"

    def make(target: Path) -> None:
        site = target / "lib" / f"python{PYTHON}" / "site-packages"
        wanted = target / "requirements.txt"
        wanted.write_text(text, "utf-8")
        install(site, "--requirement", str(wanted))
        shutil.rmtree(site / "bin", ignore_errors=True)  # started as modules; these name this machine's Python
        make_environment(target)
        _this_checkout(site, target / "bin", place)

    return kept(place, make)


def make_environment(target: Path) -> None:
    """What makes a virtual environment of a directory with packages, for Debian's Python."""
    (target / "bin").mkdir(exist_ok=True)
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to("/usr/bin/python3")
    (target / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")


def install(site: Path, *arguments: str) -> None:
    """Unpack what pip finds for aarch64 into ``site``; versions are pinned, so pip need not resolve.

    Python files are compiled where this Python is the device's.

    Raises:
        RuntimeError: pip could not fetch.
    """
    options = Target("aarch64", PYTHON).pip_options()
    if not COMPILES:
        options.append("--no-compile")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps",
         "--target", str(site), *options, *arguments],
        capture_output=True, text=True, timeout=FETCH_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise RuntimeError(f"pip found not all packages for aarch64: {' '.join(errors[-2:])}")


def _this_checkout(site: Path, programs: Path, place: Path) -> None:
    """The editable installation of this environment, whose files name the checkout's path, which is the same there."""
    for file in Path(sysconfig.get_path("purelib")).glob("*edge_bundle*"):
        (shutil.copytree if file.is_dir() else shutil.copyfile)(file, site / file.name)
    for name in ("edge-agent", "edge-packager", "edge-fleet"):
        source = Path(sys.executable).with_name(name)
        _, _, rest = source.read_text("utf-8").partition("\n")
        (programs / name).write_text(f"#!{place}/bin/python3\n{rest}", "utf-8")
        (programs / name).chmod(0o755)
