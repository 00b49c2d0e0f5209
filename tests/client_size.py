"""What ``pip install edge-bundle[client]`` downloads and leaves on disk: ``make client-size``. It asks the index."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def pip(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def measure(work: Path) -> list[tuple[str, int]]:
    """Lines of a table, in bytes."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work / "built")]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (work / "built").iterdir()
    pip("download", "--dest", work / "wheels", f"{wheel}[client]")
    found = [(f"download: {path.name.partition('-')[0]}", path.stat().st_size) for path in (work / "wheels").iterdir()]
    found.append(("download, all", size(work / "wheels")))
    offline = ("--no-index", "--find-links", work / "wheels", "edge-bundle[client]")
    for name, options in (("without bytecode", ["--no-compile"]), ("as pip installs it, with bytecode", [])):
        target = work / ("plain" if options else "compiled")
        pip("install", *options, "--target", target, *offline)
        found += [(f"on disk {name}: {path.name}", size(path)) for path in target.iterdir() if size(path) > 200_000]
        found.append((f"on disk {name}, all", size(target)))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        for name, count in measure(Path(work)):
            print(f"{count / 1e6:8.2f} MB  {name}")


if __name__ == "__main__":
    main()
