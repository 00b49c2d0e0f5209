"""A disk and a kernel for ``qemu-system-aarch64``, made without booting anything."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

from packager.kit.wheels import read_wheel
from tests.arm import packages
from tests.arm.debian import PYTHON, kernel

DISK_MIB = 2048
MODULES = (
    "virtio_mmio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "crc32c_generic",
    "libcrc32c", "crc16", "mbcache", "jbd2", "ext4", "failover", "net_failover", "virtio_net",
)  # fmt: skip
"""In the order in which they need each other; what a kernel has built in it has no file of."""

INIT = """\
#!/busybox sh
b=/busybox
$b mount -t proc none /proc; $b mount -t sysfs none /sys; $b mount -t devtmpfs none /dev
for m in $($b cat /modules); do $b insmod /m/$m.ko || echo "insmod $m failed"; done
i=0; while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do $b sleep 0.1; i=$((i+1)); done
$b mount -t ext4 /dev/vda /new || exec $b poweroff -f
$b ifconfig lo 127.0.0.1 up; $b ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
for d in dev proc sys; do $b mount --move /$d /new/$d; done
exec $b switch_root /new /lib/systemd/systemd
"""

CONSOLE = """\
[Unit]
Description=Commands of the test, over the serial line
After=multi-user.target
[Service]
ExecStart=/usr/local/bin/commands
StandardInput=file:/dev/ttyAMA0
StandardOutput=file:/dev/ttyAMA0
[Install]
WantedBy=multi-user.target
"""

COMMANDS = """\
#!/bin/bash
stty -F /dev/ttyAMA0 raw -echo
exec 2>&1
echo "### ready"
while read -r mark line; do bash -c "$line" </dev/null; echo "### $mark $?"; done
"""


def with_agent(tree: Path, kit: Path) -> None:
    """Install the agent of the unpacked kit in ``kit`` into ``tree`` as its ``install.sh`` would.

    pip unpacks the wheels here, which takes an emulated processor minutes; ``edge-agent setup`` is left to the device.
    """
    wheels = [path for path in sorted((kit / "wheels").glob("*.whl")) if not path.name.startswith("pip-")]
    (own,) = (wheel for wheel in map(read_wheel, wheels) if wheel.name == "edge-bundle")
    place = f"/opt/edge-agent/{own.version}"
    target = tree / place.lstrip("/")
    site = target / "lib" / f"python{PYTHON}" / "site-packages"
    packages.install(site, "--no-index", *map(str, wheels))
    shutil.move(site / "share", target / "share")
    programs = target / "bin"
    shutil.move(site / "bin", programs)
    for program in programs.iterdir():
        _, _, rest = program.read_text("utf-8").partition("\n")
        program.write_text(f"#!{place}/bin/python3\n{rest}", "utf-8")
    packages.make_environment(target)
    (target.parent / "current").symlink_to(own.version)


def disk(tree: Path, image: Path) -> None:
    """``tree`` as an ext4 file system in the file ``image``."""
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed", "-d", str(tree), str(image), f"{DISK_MIB}M"],
        check=True, capture_output=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
    )  # fmt: skip


def take_commands(tree: Path) -> None:
    """Let a machine made of ``tree`` execute what comes over its serial line."""
    program = tree / "usr/local/bin/commands"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(COMMANDS)
    program.chmod(0o755)
    unit = tree / "etc/systemd/system/commands.service"
    unit.write_text(CONSOLE)
    (tree / "etc/systemd/system/multi-user.target.wants" / unit.name).symlink_to(unit.name)
    for name in ("serial-getty@ttyAMA0.service",):
        (tree / "etc/systemd/system" / name).symlink_to("/dev/null")


def boot_files(cache: Path, pages: str, root: Path) -> tuple[Path, Path]:
    """Kernel and initial file system for a device whose memory has ``pages``."""
    directory = kernel(cache, pages, MODULES)
    (image,) = (directory / "boot").glob("vmlinuz-*")
    initial = directory / "initrd"
    modules: dict[str, bytes] = {}
    for name in MODULES:
        for file in directory.rglob(f"{name}.ko*"):
            data = file.read_bytes()
            modules[name] = lzma.decompress(data) if file.suffix == ".xz" else data
    members: dict[str, tuple[int, bytes]] = dict.fromkeys(("proc", "sys", "dev", "new", "m"), (16877, b""))  # fmt: skip
    members |= {f"m/{name}.ko": (0o100644, data) for name, data in modules.items()}
    members["modules"] = (0o100644, "\n".join(modules).encode() + b"\n")
    members["busybox"] = (0o100755, (root / "bin/busybox").read_bytes())
    members["init"] = (0o100755, INIT.encode())
    initial.write_bytes(archive(members))
    return image, initial


def archive(members: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive (newc), which kernels unpack as their first file system; ``members``: name → mode and content."""
    made = bytearray()
    for number, (name, (mode, data)) in enumerate([*members.items(), ("TRAILER!!!", (0, b""))], start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        made += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        made += bytes(-len(made) % 4) + data
        made += bytes(-len(made) % 4)
    return bytes(made)
