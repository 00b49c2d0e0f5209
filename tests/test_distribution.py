"""What is in the wheel, and what the device's side loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m build`` makes: an sdist, and a wheel out of that sdist."""
    out = tmp_path_factory.mktemp("dist")
    # A copy: setuptools leaves build/ and egg-info beside what it builds.
    source = tmp_path_factory.mktemp("source")
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    return out


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> zipfile.ZipFile:
    (found,) = distributions.glob("*.whl")
    return zipfile.ZipFile(found)


def test_both_distributions_pass_what_the_package_index_checks(distributions: Path) -> None:
    files = sorted(map(str, distributions.iterdir()))
    assert [Path(name).suffix for name in files] == [".whl", ".gz"]
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("PASSED") == 2


def test_sdist_holds_what_is_tracked(distributions: Path) -> None:
    (found,) = distributions.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    left_out = {name for name in tracked_files() if name not in held}
    assert left_out == {".gitignore"}


def test_wheel_holds_exactly_the_five_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {
        "agent",
        "contract",
        "edge_bundle",
        "fleet",
        "packager",
    }


def test_wheel_brings_the_unit_files_that_setup_installs_and_the_documents(wheel: zipfile.ZipFile) -> None:
    shared = {name.partition("/data/")[2] for name in wheel.namelist() if ".data/data/" in name}
    folders = ("systemd/", "docs/", "examples/")
    alone = {"README.md", "CONTRIBUTING.md"}
    alone |= {"clients/js/README.md", "clients/node-red/README.md"}
    left_out = ("docs/decisions/", "docs/bench.svg", "docs/demo.svg", "docs/fleet-console.png")
    ours = {name for name in tracked_files() if name.startswith(folders) and not name.startswith(left_out)} | alone
    assert shared == {f"share/edge-bundle/{name}" for name in ours}


def test_wheel_holds_every_module_and_the_type_markers(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package in ("agent", "contract", "edge_bundle", "fleet", "packager"):
        assert f"{package}/py.typed" in names
        for module in (ROOT / package).rglob("*.py"):
            assert str(module.relative_to(ROOT)) in names


def test_wheel_offers_all_commands_and_the_licence(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    text = wheel.read(entry_points).decode()
    assert "edge-agent = agent.cli:main" in text
    assert "edge-packager = packager.cli:main" in text
    assert "edge-fleet = fleet.cli:main" in text
    assert any(name.endswith("licenses/LICENSE") for name in names)


LOAD_ALL = """
import importlib, json, pkgutil, sys
import agent
for module in pkgutil.walk_packages(agent.__path__, "agent."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_after(script: str) -> set[str]:
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return set(json.loads(out))


def test_no_module_of_the_agent_loads_build_time_packages() -> None:
    loaded = loaded_after(LOAD_ALL)
    assert "agent.cli" in loaded
    assert not loaded & {"torch", "transformers", "onnx", "onnx_ir", "tuf", "securesystemslib", "rich", "packager"}


def test_the_running_agent_process_loads_no_runtime() -> None:
    script = "import agent.app, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = loaded_after(script)
    assert not loaded & {"numpy", "onnxruntime", "onnxruntime_genai", "tuf", "cryptography", "jinja2"}


def test_lock_file_pins_every_requirement() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all("==" in line for line in lines)
    assert "torch==2.13.0" in lines


def test_installation_page_names_every_extra_and_the_pinned_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    page, lock = (ROOT / "docs" / "INSTALL.md").read_text(), (ROOT / "requirements.lock").read_text()
    named = set(re.findall(r"^\| `(\w+)` \|", page.partition("## pip")[0], re.MULTILINE))
    assert named == set(project["project"]["optional-dependencies"])
    (pinned,) = re.findall(r"^torch==\S+$", lock, re.MULTILINE)
    assert set(re.findall(r"torch==[\d.]+\d", page + lock)) == {pinned}
    (index,) = project["tool"]["uv"]["index"]
    for text in (page, lock, (ROOT / "Makefile").read_text()):
        assert index["url"] in text, "one of them names another index of CPU builds"


PUBLISHES = ("msgspec", "paho", "cryptography", "_cffi_backend*", "cffi", "rich", "pygments", "markdown_it", "mdurl",
             "securesystemslib", "tuf", "urllib3")  # fmt: skip
"""What ``edge-bundle[publish]`` brings, as modules."""


def with_only(directory: Path, modules: tuple[str, ...], *command: str) -> subprocess.CompletedProcess[str]:
    """Run in an interpreter that has ``modules`` of this environment, this distribution, and nothing else."""
    site = directory / "site"
    site.mkdir(exist_ok=True)
    installed = Path(sysconfig.get_path("purelib"))
    for pattern in (*modules, "edge_bundle*.dist-info"):
        for found in installed.glob(pattern):
            if not (site / found.name).exists():
                (site / found.name).symlink_to(found)
    environment = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}"}
    return subprocess.run(
        [sys.executable, "-S", *command], env=environment, cwd=directory, check=False, capture_output=True, text=True
    )


def test_client_extra_is_enough_for_the_client_and_the_commands_that_ask_devices(tmp_path: Path) -> None:
    small = ("msgspec", "paho")
    code = "from edge_bundle import AsyncClient, Client, parse_broker"
    assert with_only(tmp_path, small, "-c", code).stderr == ""
    for command in ("prompt hello --device box", "deploy a@1.0.0 --device box", "watch"):
        ended = with_only(tmp_path, small, "-m", "packager.cli", *command.split(), "--broker", "mqtt://127.0.0.1:1")
        assert (ended.returncode, ended.stderr.count("\n")) == (4, 1)
        assert "the broker 127.0.0.1:1 cannot be reached" in ended.stderr


MAX_CLIENT_BYTES = 5 * 10**6
"""On disk, with ``pip install --no-compile``; the bytecode of rooms that a client never loads doubles it
(docs/decisions/0050, ``make client-size``)."""

MAX_WHEEL_BYTES = 2 * 10**6
"""To download; msgspec and paho-mqtt take 0.3 MB more."""


def test_client_extra_takes_less_than_5_mb_and_loads_nothing_else(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    assert Path(str(wheel.filename)).stat().st_size < MAX_WHEEL_BYTES
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
         "--target", str(site), str(wheel.filename)],
        check=True, capture_output=True,
    )  # fmt: skip
    # What the extra asks for, as pip has installed it here.
    installed = Path(sysconfig.get_path("purelib"))
    for pattern in ("msgspec", "msgspec-*.dist-info", "paho", "paho_mqtt-*.dist-info"):
        (found,) = installed.glob(pattern)
        shutil.copytree(found, site / found.name, ignore=shutil.ignore_patterns("__pycache__"))
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size < MAX_CLIENT_BYTES, f"{size / 1e6:.1f} MB"
    script = """
import json, sys
before = set(sys.modules)
import edge_bundle
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
loaded -= {name for name in loaded if name.startswith("_sysconfigdata")}  # zoneinfo's, named by the platform
print(json.dumps(sorted(loaded)))
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    out = subprocess.run(
        [sys.executable, "-S", "-c", script], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(out) == ["contract", "edge_bundle", "msgspec", "paho"]


@pytest.mark.parametrize(
    ("program", "command", "extra"),
    [
        ("packager", "build x --name a --version 1.0.0 --out o", "packager"),
        ("packager", "repo init --unencrypted", "publish"),
        ("packager", "completion bash", "packager"),
        ("agent", "trust provision root.json --state-dir state", "agent"),
    ],
)
def test_a_command_whose_extra_is_missing_says_which(tmp_path: Path, program: str, command: str, extra: str) -> None:
    ended = with_only(tmp_path, ("msgspec", "paho"), "-m", f"{program}.cli", *command.split())
    assert ended.returncode == 78
    assert ended.stderr.count("\n") == 1
    assert f"is missing, which this command needs: pip install 'edge-bundle[{extra}]'" in ended.stderr


def test_publish_extra_is_enough_for_a_repository(tmp_path: Path) -> None:
    def packager(*command: str) -> str:
        ended = with_only(tmp_path, PUBLISHES, "-m", "packager.cli", "repo", *command)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    packager("init", "--unencrypted")
    packager("refresh")
    assert "timestamp" in packager("show")


FLEET = ("msgspec", "paho", "cryptography", "_cffi_backend*", "cffi", "securesystemslib", "tuf", "urllib3", "tzdata",
         "sqlalchemy", "typing_extensions*", "psycopg", "psycopg_binary", "psycopg_binary.libs",
         "starlette", "uvicorn", "anyio", "idna", "h11", "click", "jinja2", "markupsafe", "authlib", "joserfc",
         "httpx2*", "httpcore2*", "truststore", "certifi")  # fmt: skip
"""What ``edge-bundle[fleet]`` brings, as modules."""


def test_fleet_extra_is_enough_for_the_fleet(tmp_path: Path) -> None:
    script = """
import importlib, pkgutil, fleet, psycopg
for module in pkgutil.walk_packages(fleet.__path__, "fleet."):
    importlib.import_module(module.name)
"""
    assert with_only(tmp_path, FLEET, "-c", script).stderr == ""
    made = with_only(tmp_path, FLEET, "-m", "fleet.cli", "init")
    assert (made.returncode, made.stdout) == (0, "made sqlite:///fleet.db\n"), made.stderr
    planned = with_only(tmp_path, FLEET, "-m", "fleet.cli", "rollout", "plan", "model@1.0.0", "--where", "*")
    assert "matches none of the 0 devices" in planned.stderr
