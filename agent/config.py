"""The configuration file: TOML, read strictly, so that a mistake is said and never ignored."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from agent.config_faults import Faults, line_of
from agent.install.settings import InstallSettings
from agent.mqtt.settings import BrokerSettings, broker_faults
from agent.serving.settings import ServingSettings
from agent.systemd.credentials import find_credential
from agent.telemetry.settings import TelemetrySettings
from agent.worker.settings import WorkerSettings
from contract.errors import ConfigInvalid
from contract.identifiers import is_identifier
from contract.mqtt.topics import DEFAULT_ROOT, Topics
from contract.source.access import FILES, Source, location_of, source_faults

MAX_CONFIG_BYTES = 1 << 20
"""A configuration is a page of text."""

WORKER_SOCKET_VARIABLE = "EDGE_AGENT_WORKER_SOCKET"
"""Set by ``edge-agent.service``."""


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration of a device. Paths are absolute, or relative to the directory of the file."""

    device: Annotated[
        str, Meta(description="this device's name in topics, unlike every other's: 1 to 64 of `A-Z a-z 0-9 _ . -`")
    ]
    state_dir: Annotated[Path, Meta(description="bundles, trust, results and `audit.jsonl`")] = Path(
        "/var/lib/edge-agent"
    )
    topic_root: Annotated[str, Meta(description="what all topics begin with")] = DEFAULT_ROOT
    groups: Annotated[list[str], Meta(description="groups of devices whose requests this one takes, too")] = []
    broker: BrokerSettings = BrokerSettings()
    sources: dict[str, Source] = {}
    install: InstallSettings = InstallSettings()
    worker: WorkerSettings = WorkerSettings()
    serving: ServingSettings = ServingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def topics(self) -> Topics:
        return Topics(self.device, self.topic_root)


def load_config(path: Path) -> AgentConfig:
    """Read and check a configuration file; every path in it comes back absolute.

    Raises:
        ConfigInvalid: says which key is wrong and what to write instead; never contains a password.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(f"the configuration {path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigInvalid(f"the configuration {path} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"the configuration {path} is not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigInvalid(f"the configuration {path} is not TOML: {error}") from error
    try:
        return read_config(document, path.absolute().parent)
    except ConfigInvalid as error:
        raise _with_lines(error, data.decode("utf-8")) from error


def _with_lines(error: ConfigInvalid, text: str) -> ConfigInvalid:
    """The same faults, each with the line that it is on, as far as that can be said."""
    for fault in error.faults:
        fault.line = line_of(text, fault.field or "")
    return error


def read_config(document: dict[str, Any], base: Path) -> AgentConfig:
    """Check a parsed document; relative paths are taken from ``base``.

    Raises:
        ConfigInvalid: ``field`` names the key; ``faults`` are all of them, where there are several.
    """
    faults = Faults(_convert)
    config = faults.read(document, AgentConfig)
    # Without a usable name the rest is looked at all the same.
    config = config or Faults(_convert).read({**document, "device": "unnamed"}, AgentConfig)
    assert config is not None
    resolved = _resolve_paths(config, base)
    faults.check(lambda: _topic_faults(resolved), "device", "topic_root")
    faults.check(lambda: _name_faults("groups", resolved.groups), "groups")
    faults.check(lambda: _source_faults(resolved.sources), "sources")
    faults.check(lambda: broker_faults(resolved.broker), "broker.username", "broker.tls", "broker.allow_plaintext")
    faults.raise_any()
    return resolved


def _convert(type_: type[Any], value: Any) -> Any:
    """What TOML has no type for: a path is a string.

    Raises:
        ValueError: turned into a ValidationError with its place.
    """
    if type_ is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("expected a path")


def _topic_faults(config: AgentConfig) -> Iterator[ConfigInvalid]:
    """What the types cannot say of names that stand in topics."""
    for device, root in ((config.device, DEFAULT_ROOT), ("unnamed", config.topic_root)):
        try:
            Topics(device, root)
        except ConfigInvalid as error:
            key = "topic_root" if error.field == "root" else error.field
            yield ConfigInvalid(f"{key}: {error.message}", field=key)


def _name_faults(table: str, names: Iterable[str]) -> Iterator[ConfigInvalid]:
    for name in names:
        if not is_identifier(name):
            yield ConfigInvalid(
                f"{table}: {name!r} cannot be a name: use 1 to 64 of A-Z a-z 0-9 _ . -", field=f"{table}.{name}"
            )


def _source_faults(sources: Mapping[str, Source]) -> Iterator[ConfigInvalid]:
    yield from _name_faults("sources", sources)
    for name, source in sources.items():
        location = location_of(source)
        if not location or not location.isprintable():
            wrong = "holds control characters" if location else "is empty"
            yield ConfigInvalid(f"sources.{name} {wrong}: give a directory or a URL", field=f"sources.{name}")
            continue
        for fault in source_faults(source):
            field = f"sources.{name}.{fault.field}" if fault.field else f"sources.{name}"
            yield ConfigInvalid(f"{field}: {fault.message}", field=field)


def _resolve_paths(config: AgentConfig, base: Path) -> AgentConfig:
    """Relative to the file, since the working directory of a service is nobody's choice."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else find_credential(base / path, base)

    broker = msgspec.structs.replace(config.broker, password_file=absolute(config.broker.password_file))
    if broker.tls is not None:
        tls = broker.tls
        broker = msgspec.structs.replace(
            broker,
            tls=msgspec.structs.replace(tls, ca=absolute(tls.ca), cert=absolute(tls.cert), key=absolute(tls.key)),
        )
    sources = {name: _absolute_source(source, base) for name, source in config.sources.items()}
    worker = msgspec.structs.replace(config.worker, socket=_worker_socket(config.worker, base))
    return msgspec.structs.replace(
        config, state_dir=base / config.state_dir, broker=broker, sources=sources, worker=worker
    )


def _absolute_source(source: Source, base: Path) -> Source:
    if isinstance(source, str):
        return source if "://" in source or not source else str(base / source)
    files = {name: str(find_credential(base / path, base)) for name in FILES if (path := getattr(source, name))}
    return msgspec.structs.replace(source, **files)


def _worker_socket(settings: WorkerSettings, base: Path) -> Path | None:
    """As configured, or as the agent's unit says: workers are sandboxed there without a word in the file."""
    if settings.socket is not None:
        return base / settings.socket
    named = os.environ.get(WORKER_SOCKET_VARIABLE)
    return Path(named) if named else None
