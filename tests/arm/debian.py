"""A Debian for aarch64, unpacked on a machine that cannot run it.

apt resolves for aarch64 in a tree of its own, which leaves the machine's apt as it is; nothing of a package is run:
links, accounts and units that installing would make are written here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

MIRROR = os.environ.get("EDGE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITE = "bookworm"
PYTHON = "3.11"
"""That of this Debian."""

COMPILES = f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON
"""Whether this Python compiles what that one runs."""
DEVICE = (
    "systemd", "systemd-sysv", "dbus", "python3", "mosquitto", "mosquitto-clients", "procps", "iproute2", "openssl",
    "ca-certificates", "busybox-static", "nginx-light", "git", "make",
)  # fmt: skip
"""What a device has, and what tests call."""

KERNELS = {"4k": ("bookworm", "linux-image-arm64"), "16k": ("trixie", "linux-image-arm64-16k")}
"""By the size of a page of memory: a Raspberry Pi 5 comes with 16 KiB."""

FETCH_SECONDS = 1800

ACCOUNTS = ("messagebus", "mosquitto", "systemd-network", "systemd-resolve", "systemd-timesync", "www-data")
"""Those that packages would have added while they were set up."""

MASKED = (
    "systemd-firstboot.service", "systemd-networkd-wait-online.service", "systemd-networkd.service",
    "systemd-timesyncd.service", "nginx.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "fstrim.timer", "systemd-pstore.service", "getty@tty1.service",
)  # fmt: skip


def missing(*programs: str, why: str) -> str:
    """One sentence if a program, its data or the right to make roots of many owners is not there; else nothing."""
    packages = {
        "qemu-system-aarch64": "qemu-system-arm", "qemu-aarch64-static": "qemu-user-static", "apt-get": "apt",
        "dpkg-deb": "dpkg", "mkfs.ext4": "e2fsprogs",
    }  # fmt: skip
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacks = [f"{name} (Debian package {packages[name]})" for name in programs if not shutil.which(name, path=path)]
    if not Path(KEYRING).is_file():
        lacks.append(f"{KEYRING} (Debian package debian-archive-keyring)")
    if os.geteuid() != 0:
        lacks.append("root, whose right it is to make files of other owners")
    return f"{why} without {' and '.join(lacks)}" if lacks else ""


def kept(target: Path, make: Callable[[Path], None]) -> Path:
    """``target``, made by ``make(directory)`` if it is not there; an interrupted making is never taken for it."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    making.chmod(0o755)
    try:
        make(making)
        making.rename(target)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return target


def root(cache: Path) -> Path:
    """The root of a Debian for aarch64, made once for each list of packages."""
    key = hashlib.sha256(f"{SUITE} {DEVICE} {ACCOUNTS} {MASKED}".encode()).hexdigest()[:12]
    return kept(cache / f"root-{key}", _make_root)


def kernel(cache: Path, pages: str, modules: Sequence[str]) -> Path:
    """A directory with ``boot/vmlinuz-*`` of the kernel with ``pages`` (``4k``, ``16k``), and its ``modules``."""
    suite, meta = KERNELS[pages]

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            apt = Apt(suite, Path(scratch))
            depends = apt.ask("show", meta)
            image = next(line.split()[1] for line in depends.splitlines() if line.startswith("Depends:"))
            apt.download(image)
            unpack(apt.fetched(), target)
        keep = {file for name in modules for file in target.rglob(f"{name}.ko*")}
        for file in filter(Path.is_file, list(target.rglob("*"))):
            if file not in keep and not file.name.startswith("vmlinuz-"):
                file.unlink()

    return kept(cache / f"kernel-{pages}", make)


class Apt:
    """apt for aarch64 as if nothing were installed, with its lists and downloads in ``directory``."""

    def __init__(self, suite: str, directory: Path) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True)
        (directory / "status").touch()
        (directory / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
        settings = {
            "APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "0", "Dir::State::Lists": directory / "lists",
            "Dir::State::status": directory / "status", "Dir::Cache": directory / "cache",
            "Dir::Etc::sourcelist": directory / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        }  # fmt: skip
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        self._directory = directory
        self._run("apt-get", "update")

    def ask(self, *words: str) -> str:
        return self._run("apt-cache", *words)

    def install(self, *packages: str) -> None:
        """Download ``packages``, all that they need, and what every Debian has."""
        self._run("apt-get", "install", "--yes", "--download-only", "?essential", *packages)

    def download(self, package: str) -> None:
        """Download that one package."""
        self._run("apt-get", "download", package, cwd=self._directory / "cache/archives")

    def fetched(self) -> list[Path]:
        return sorted((self._directory / "cache/archives").glob("*.deb"))

    def _run(self, program: str, *words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [program, *self._options, *words],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} {words[0]} failed for aarch64: {done.stderr.strip()[-500:]}")
        return done.stdout


def unpack(packages: Sequence[Path], target: Path) -> None:
    """The files of ``packages``; ``dpkg-deb --extract`` would put a directory in place of the link ``/bin``."""
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as reader:
            subprocess.run(
                ["tar", "--extract", "--keep-directory-symlink", "--directory", str(target)],
                stdin=reader.stdout, check=True, capture_output=True,
            )  # fmt: skip
        if reader.returncode != 0:
            raise RuntimeError(f"{package.name} cannot be unpacked")


def _make_root(target: Path) -> None:
    for name in ("bin", "sbin", "lib"):
        (target / "usr" / name).mkdir(parents=True)
        (target / name).symlink_to(f"usr/{name}")
    with tempfile.TemporaryDirectory() as scratch:
        apt = Apt(SUITE, Path(scratch))
        apt.install(*DEVICE)
        unpack(apt.fetched(), target)
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (target / name).mkdir(exist_ok=True)
    _accounts(target)
    for name, text in {
        "hostname": "armbox\n",
        "hosts": "127.0.0.1 localhost armbox\n::1 localhost\n",
        "machine-id": "0123456789abcdef0123456789abcdef\n",
        "locale.conf": "LANG=C.UTF-8\n",
        "fstab": "/dev/vda / ext4 defaults,noatime 0 1\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        "mosquitto/conf.d/local.conf": "listener 1883 127.0.0.1\nallow_anonymous true\n",
    }.items():
        (target / "etc" / name).write_text(text)
    for name in MASKED:
        unit = target / "etc/systemd/system" / name
        unit.unlink(missing_ok=True)
        unit.symlink_to("/dev/null")
    wanted = target / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "mosquitto.service").symlink_to("/lib/systemd/system/mosquitto.service")
    (target / "var/lib/mosquitto").chmod(0o777)
    (target / "var/log/mosquitto").chmod(0o777)
    if COMPILES:
        # Setting up Debian's Python compiles it, and so does this Python, in a thirtieth of the time.
        library = target / "usr/lib" / f"python{PYTHON}"
        command = [sys.executable, "-m", "compileall", "-q", "-s", str(target), "-p", "/", str(library)]
        subprocess.run(command, check=False, capture_output=True)


def _accounts(target: Path) -> None:
    """Accounts and groups of base-passwd, and those that packages would have added."""
    for name in ("passwd", "group"):
        shutil.copyfile(target / f"usr/share/base-passwd/{name}.master", target / "etc" / name)
    passwd, group = target / "etc/passwd", target / "etc/group"
    there = {line.split(":")[0] for line in passwd.read_text().splitlines()}
    with passwd.open("a") as accounts, group.open("a") as groups:
        for number, name in enumerate(ACCOUNTS, start=101):
            if name not in there:
                accounts.write(f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n")
                groups.write(f"{name}:x:{number}:\n")
    shadow = target / "etc/shadow"
    shadow.write_text(
        "".join(f"{line.split(':')[0]}:*:20000:0:99999:7:::\n" for line in passwd.read_text().splitlines())
    )
    shadow.chmod(0o640)
    # base-passwd's master has no password at all for root: "*" there, and here.
    passwd.write_text(passwd.read_text().replace(":*:", ":x:"))
