"""Where tests stand: folders of tests mirror packages, so that whoever looks for a module's tests finds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("contract", "edge_bundle", "packager", "agent", "fleet")

BESIDE = {
    "agent/engine/conformance": "one suite for all engines, the double included",
    "agent/worker/conformance": "one suite for all workers, the doubles included",
    "agent/worker/double": "the double of a worker",
    "arm": "devices with another processor, which qemu boots",
    "avx2": "the tests of others, with the kernels of another processor",
    "chaos": "a whole device whose parts are killed while it is asked",
    "crash": "installation with the power cut at every effect",
    "e2e": "the whole way from a model to answers",
    "fleet/crash": "two controllers, of which one is killed at each of its effects",
    "fleet/gateway/packages": "programs of others, which ask the gateway from an environment of their own",
    "fleet/simulate": "a fleet of devices that are not there",
    "mutate": "published repositories with a byte or a token changed",
    "sabotage": "the tests of others, with a check taken out of the source",
    "siege": "a whole device under hostile messages",
    "soak": "a whole device that is asked and updated for long",
    "tuf_client": "a client of TUF's own conformance suite",
    "vocabulary": "the words of the source",
}
"""Folders of tests that mirror no package, and what they are instead."""

LEAST_MODULES = 2
"""A package with fewer is tested beside the one that it is in."""


def without_a_package(folders: Iterable[str], packages: Iterable[str], beside: Mapping[str, str] = BESIDE) -> list[str]:
    """Folders of tests (relative to ``tests``) beside no package and for no reason, and reasons that none needs."""
    there, known = set(folders), set(packages)
    strays = [f"tests/{each} mirrors no package" for each in sorted(there - known - set(beside))]
    stale = [f"there is no reason to explain tests/{each}" for each in sorted(set(beside) - (there - known))]
    return strays + stale


def without_tests(folders: Iterable[str], packages: Mapping[str, int]) -> list[str]:
    """Packages (with how many modules they have) that no folder of tests mirrors."""
    there = set(folders)
    return [
        f"{each} has no folder tests/{each}"
        for each, modules in sorted(packages.items())
        if modules >= LEAST_MODULES and each not in there
    ]


def packages_of(root: Path) -> dict[str, int]:
    """How many modules each package of the product has, with what else has tests beside it, by its path."""
    found = {each: 0 for each in ("clients", "examples", "systemd") if (root / each).is_dir()}
    for top in PACKAGES:
        for initial in (root / top).rglob("__init__.py"):
            package = initial.parent
            found[package.relative_to(root).as_posix()] = len(list(package.glob("*.py"))) - 1
    return found


def folders_of(root: Path) -> list[str]:
    """Folders below ``tests`` with Python files in them."""
    tests = root / "tests"
    return sorted({file.parent.relative_to(tests).as_posix() for file in tests.rglob("*.py")} - {"."})


def complaints(root: Path = ROOT) -> list[str]:
    """What stands where nobody would look for it."""
    folders, packages = folders_of(root), packages_of(root)
    return [*without_a_package(folders, packages), *without_tests(folders, packages)]


if __name__ == "__main__":
    found = complaints()
    print(*found, sep="\n", end="\n" if found else "")
    raise SystemExit(bool(found))
