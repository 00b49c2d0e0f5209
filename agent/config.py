"""The configuration file: TOML, read strictly, so that a mistake is said and never ignored."""

from __future__ import annotations

import difflib
import os
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agent.broker_settings import BrokerSettings, check_broker
from agent.credentials import find_credential
from agent.install.settings import InstallSettings
from agent.serving.settings import ServingSettings
from agent.telemetry.settings import TelemetrySettings
from agent.worker.settings import WorkerSettings
from contract.errors import ConfigInvalid
from contract.mqtt.topics import DEFAULT_ROOT, Topics
from contract.names import is_identifier

MAX_CONFIG_BYTES = 1 << 20
"""A configuration is a page of text."""

WORKER_SOCKET_VARIABLE = "EDGE_AGENT_WORKER_SOCKET"
"""Set by ``edge-agent.service``."""


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """All that an operator can say. ``sources`` names the places that bundles may come from (path or URL);
    paths are absolute or relative to the configuration file.
    """

    device: str
    state_dir: Path = Path("/var/lib/edge-agent")
    topic_root: str = DEFAULT_ROOT
    groups: list[str] = []
    broker: BrokerSettings = BrokerSettings()
    sources: dict[str, str] = {}
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
    return read_config(document, path.absolute().parent)


def read_config(document: dict[str, Any], base: Path) -> AgentConfig:
    """Check a parsed document; relative paths are taken from ``base``.

    Raises:
        ConfigInvalid: ``field`` names the key.
    """
    _refuse_unknown_keys(document, AgentConfig, "")
    if "device" not in document:
        raise ConfigInvalid('device is missing: name this device, for example device = "kitchen-1"', field="device")
    try:
        config = msgspec.convert(document, AgentConfig, dec_hook=_convert)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`") or None
        raise ConfigInvalid(f"{key or 'the configuration'}: {_in_plain_words(text)}", field=key) from error
    _check(config)
    return _resolve_paths(config, base)


def _refuse_unknown_keys(table: dict[str, Any], type_: type[Struct], prefix: str) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(type_)}
    for key, value in table.items():
        where = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.6)
            raise ConfigInvalid(
                f"{where} is not a key of the configuration: "
                + (f"did you mean {prefix}{near[0]}?" if near else f"use one of {', '.join(sorted(known))}"),
                field=where,
            )
        inner = _struct_of(known[key])
        if inner is not None and isinstance(value, dict):
            _refuse_unknown_keys(value, inner, f"{where}.")


def _convert(type_: type[Any], value: Any) -> Any:
    """What TOML has no type for: a path is a string.

    Raises:
        ValueError: turned into a ValidationError with its place.
    """
    if type_ is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("expected a path")


def _struct_of(annotation: Any) -> type[Struct] | None:
    """The struct in an annotation such as ``X`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((found for part in typing.get_args(annotation) if (found := _struct_of(part))), None)
    return None


def _in_plain_words(text: str) -> str:
    return text[:1].lower() + text[1:]


def _check(config: AgentConfig) -> None:
    try:
        _ = config.topics
    except ConfigInvalid as error:
        key = "topic_root" if error.field == "root" else error.field
        raise ConfigInvalid(f"{key}: {error.message}", field=key) from error
    for kind, names in (("groups", config.groups), ("sources", list(config.sources))):
        for name in names:
            if not is_identifier(name):
                raise ConfigInvalid(
                    f"{kind}: {name!r} cannot be a name: use 1 to 64 of A-Z a-z 0-9 _ . -", field=f"{kind}.{name}"
                )
    for name, location in config.sources.items():
        if not location or not location.isprintable():
            wrong = "holds control characters" if location else "is empty"
            raise ConfigInvalid(f"sources.{name} {wrong}: give a directory or a URL", field=f"sources.{name}")


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
    check_broker(broker)
    sources = {
        name: location if "://" in location else str(base / location) for name, location in config.sources.items()
    }
    worker = msgspec.structs.replace(config.worker, socket=_worker_socket(config.worker, base))
    return msgspec.structs.replace(
        config, state_dir=base / config.state_dir, broker=broker, sources=sources, worker=worker
    )


def _worker_socket(settings: WorkerSettings, base: Path) -> Path | None:
    """As configured, or as the agent's unit says: workers are sandboxed there without a word in the file."""
    if settings.socket is not None:
        return base / settings.socket
    named = os.environ.get(WORKER_SOCKET_VARIABLE)
    return Path(named) if named else None
