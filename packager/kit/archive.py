"""One tar that installs the agent: the same inputs give the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from contract import strict_json
from contract.errors import BuildRefused, EdgeBundleError, UsageError
from contract.system.durable import translate
from packager.kit.target import Target
from packager.kit.wheels import Wheel

INSTALLER = Path(__file__).with_name("install.sh")
MAX_ROOT_BYTES = 1 << 20
MAX_CONFIG_BYTES = 1 << 20


class Member(Struct, frozen=True):
    """A file in the kit; ``path`` is relative to the kit's directory."""

    path: str
    size: int
    sha256: str


class Kit(Struct, frozen=True):
    """A written kit. ``installed_bytes``: unpacked wheels; compiled Python adds about a fifth of its source."""

    file: Path
    version: str
    target: Target
    members: list[Member]
    installed_bytes: int


def read_root(path: Path) -> bytes:
    """The root of trust that devices are provisioned with.

    Raises:
        UsageError: it is not a root.json.
    """
    try:
        data = path.read_bytes()
        document = strict_json.loads(data, max_bytes=MAX_ROOT_BYTES, what="it")
    except OSError as error:
        raise UsageError(f"--root-json {path} cannot be read: {error.strerror}") from error
    except EdgeBundleError as error:
        raise UsageError(f"--root-json {path} is not a root.json: {error.message}") from error
    signed = document.get("signed") if isinstance(document, dict) else None
    if not isinstance(signed, dict) or signed.get("_type") != "root" or not document.get("signatures"):
        raise UsageError(f"--root-json {path} is not signed TUF root metadata; take N.root.json of the repository")
    return data


def read_config(path: Path) -> bytes:
    """The agent's configuration; the device checks it strictly, here it must be TOML.

    Raises:
        UsageError: it is not.
    """
    try:
        data = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
        tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path} is not TOML: {error}") from error
    return data


def write_kit(out: Path, target: Target, wheels: Sequence[Wheel], *, root: bytes, config: bytes) -> Kit:
    """Put everything into ``out``.

    Raises:
        BuildRefused: our own wheel is missing; StoreFull, StoreBroken: ``out`` cannot be written.
    """
    own = next((wheel for wheel in wheels if wheel.name == "edge-bundle"), None)
    if own is None:
        raise BuildRefused("the agent's own wheel is not among the wheels")
    contents: dict[str, bytes | Path] = {f"wheels/{wheel.path.name}": wheel.path for wheel in wheels}
    contents |= {"root.json": root, "agent.toml": config, "install.sh": INSTALLER}
    members = [_describe(path, contents[path]) for path in sorted(contents)]
    contents["SHA256SUMS"] = "".join(f"{member.sha256}  {member.path}\n" for member in members).encode()
    facts = {"kit": 1, "version": own.version, "arch": target.arch, "python": target.python}
    contents["kit.json"] = json.dumps(facts, indent=1).encode() + b"\n"
    top = f"edge-agent-{own.version}-{target.name}"
    making = out.with_name(f".{out.name}.part")
    try:
        with tarfile.open(making, "w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(contents):
                _add(archive, f"{top}/{path}", contents[path])
        making.replace(out)
    except OSError as error:
        making.unlink(missing_ok=True)
        raise translate(error, f"writing {out}") from error
    return Kit(out, own.version, target, members, sum(wheel.installed_bytes for wheel in wheels))


def _describe(path: str, content: bytes | Path) -> Member:
    if isinstance(content, bytes):
        return Member(path, len(content), hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Member(path, content.stat().st_size, digest)


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    member = tarfile.TarInfo(name)  # owner 0 and time 0: nothing of this workstation
    member.mode = 0o755 if name.endswith(".sh") else 0o644
    if isinstance(content, bytes):
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        return
    member.size = content.stat().st_size
    with content.open("rb") as file:
        archive.addfile(member, file)
