"""Where a bundle is made: what a killed build left there goes, what a running one has stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import StoreBroken, StoreFull, UsageError
from packager.build.bundle import staging
from packager.build.pipeline import disk_errors

MAKER = """
import sys, tempfile
from pathlib import Path
from packager.build.bundle import staging

with staging(Path(sys.argv[1])) as staged:
    (staged / "weights").write_bytes(bytes(1000))
    folder = Path(tempfile.mkdtemp(prefix=f"{staged.name}.kv-", dir=staged.parent))
    (folder / "weights").write_bytes(bytes(1000))
    print(staged, flush=True)
    sys.stdin.readline()
"""


def start(target: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", MAKER, str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_build_left_beside_its_target_goes_with_the_next(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".out.mine", ".output.abcdefgh.partial", "out.abcdefgh.partial")]
    for path in others:
        path.mkdir()
    process, staged = start(tmp_path / "out")
    with pytest.raises(UsageError, match=r"another process is making .*/out; wait for it, or name another") as caught:
        with staging(tmp_path / "out"):
            pass
    assert caught.value.field == "out"
    assert (staged / "weights").exists()
    with staging(tmp_path / "other"):
        assert (staged / "weights").exists()
    with process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(list(tmp_path.glob(".out.*.partial*"))) == 2
    with staging(tmp_path / "out") as mine:
        assert [path for path in tmp_path.iterdir() if path not in others] == [mine]
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_directories_that_were_made_for_a_bundle_go_where_none_comes(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), staging(tmp_path / "there" / "new" / "deep" / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with staging(tmp_path / "new" / "out") as staged:
        staged.rename(tmp_path / "new" / "out")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_errors_of_the_disk_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreBroken) as caught, disk_errors("building"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "model.safetensors"))
    assert caught.value.message == (
        f"building failed: {tmp_path / 'model.safetensors'} is not for this user to read or write; change its "
        "permissions, or do this as another user"
    )
    with pytest.raises(StoreBroken, match=rf"building \({tmp_path / 'a'}\) failed: Not a directory"):
        with disk_errors("building"):
            (tmp_path / "a").touch()
            list((tmp_path / "a").iterdir())
    with pytest.raises(StoreFull, match=r"^no space left while building$"), disk_errors("building"):
        raise OSError(28, "No space left on device")
    with pytest.raises(StoreFull, match=r"while building \(out/model\.onnx\)$"), disk_errors("building"):
        raise OSError(28, "No space left on device", "cache/model.onnx", None, "out/model.onnx")  # as a copy does
