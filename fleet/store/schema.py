"""The tables. Documents of ours are JSON in text columns; what is searched for has a column of its own."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
)

VERSION = 4
"""Of the schema. Of an older one :meth:`Database.create` adds the tables and columns that it lacks; the first change of
what is there brings a migration tool with it."""

METADATA = MetaData()

_NAME = String(64)
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

schema_version = Table("schema_version", METADATA, Column("version", Integer, primary_key=True))

device = Table(
    "device",
    METADATA,
    Column("id", _NAME, primary_key=True),
    Column("site", String(128), nullable=False, default=""),
    Column("hardware", String(128), nullable=False, default=""),
    Column("arch", Text, nullable=False, default=""),
    Column("agent", Text, nullable=False, default=""),
    Column("bundle", Text, nullable=False, default=""),
    Column("cores", _NUMBER),
    Column("ram", _NUMBER),
    Column("groups", Text, nullable=False, default="[]"),
    Column("labels", Text, nullable=False, default="{}"),
    Column("pinned", Boolean, nullable=False, default=False),
    Column("info", Text),
    Column("health", Text),
    Column("reported", Text),
    Column("desired", String(128)),
    Column("online", Boolean, nullable=False, default=False),
    Column("boots", Text, nullable=False, default="[]"),
    Column("reliable", Boolean, nullable=False, default=True),
    Column("trouble", Text, nullable=False, default=""),
    Column("first_seen", Float, nullable=False),
    Column("seen_at", Float),
)

rollout = Table(
    "rollout",
    METADATA,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("bundle", String(129), nullable=False),
    Column("digest", String(64), nullable=False, default=""),
    Column("spec", Text, nullable=False),
    Column("state", String(20), nullable=False, index=True),
    Column("reason", Text, nullable=False, default=""),
    Column("created_by", String(128), nullable=False),
    Column("approved_by", String(128), nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ending", String(20), nullable=False),
)

wave = Table(
    "wave",
    METADATA,
    Column("rollout", _NUMBER, ForeignKey("rollout.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(20), nullable=False),
    Column("opened", Float),
    Column("bake_until", Float),
    Column("verdict", Text, nullable=False, default=""),
)

target = Table(
    "target",
    METADATA,
    Column("rollout", _NUMBER, ForeignKey("rollout.id"), primary_key=True),
    Column("device", _NAME, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("open", Boolean, nullable=False),
    Column("record", Text, nullable=False),
)
Index("target_open", target.c.device, unique=True, sqlite_where=target.c.open, postgresql_where=target.c.open)

attempt = Table(
    "attempt",
    METADATA,
    Column("rollout", _NUMBER, ForeignKey("rollout.id"), primary_key=True),
    Column("device", _NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("asked_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("state", String(20), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
)

outbox = Table(
    "outbox",
    METADATA,
    Column("device", _NAME, primary_key=True),
    Column("revision", String(128), nullable=False),
    Column("payload", Text, nullable=False),
    Column("rollout", _NUMBER, nullable=False),
    Column("written_at", Float, nullable=False),
    Column("sent_at", Float),
)
Index("outbox_unsent", outbox.c.sent_at)

slot = Table(
    "slot",
    METADATA,
    Column("site", String(128), primary_key=True),
    Column("device", _NAME, primary_key=True),
    Column("expires", Float, nullable=False),
)

canary_score = Table(
    "canary_score",
    METADATA,
    Column("rollout", _NUMBER, ForeignKey("rollout.id"), primary_key=True),
    Column("device", _NAME, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("asked", Integer, nullable=False),
    Column("answered", Integer, nullable=False),
    Column("expected", Integer, nullable=False),
    Column("at", Float, nullable=False),
)

sample_last = Table(
    "sample_last",
    METADATA,
    Column("device", _NAME, primary_key=True),
    Column("at", Float, nullable=False),
    Column("era", Float, nullable=False),
    Column("raw", Text, nullable=False),
    Column("total", Text, nullable=False),
    Column("memory_available", Float),
    Column("boot", Float),
    Column("throttled", _NUMBER),
)

rollup_1m = Table(
    "rollup_1m",
    METADATA,
    Column("device", _NAME, primary_key=True),
    Column("minute", _NUMBER, primary_key=True),
    Column("total", Text, nullable=False),
)

event_log = Table(
    "event",
    METADATA,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("device", _NAME, nullable=False, index=True),
    Column("kind", String(20), nullable=False),
    Column("detail", Text, nullable=False),
)

leader = Table(
    "leader",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("epoch", _NUMBER, nullable=False),
    Column("holder", String(128), nullable=False),
    Column("since", Float, nullable=False),
)

audit = Table(
    "audit",
    METADATA,
    Column("id", _NUMBER, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("detail", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)

token = Table(
    "token",
    METADATA,
    Column("name", _NAME, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("models", Text, nullable=False, default="[]"),
    Column("limits", Text, nullable=False, default="{}"),
)

token_usage = Table(
    "token_usage",
    METADATA,
    Column("token", _NAME, primary_key=True),
    Column("window", String(8), primary_key=True),
    Column("start", _NUMBER, primary_key=True),
    Column("requests", _NUMBER, nullable=False),
    Column("tokens", _NUMBER, nullable=False),
)

bundle = Table(
    "bundle",
    METADATA,
    Column("name", _NAME, primary_key=True),
    Column("version", _NAME, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("manifest", Text, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
    Column("read_at", Float, nullable=False),
)

account = Table(
    "account",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("password", String(256)),
    Column("issuer", String(256), nullable=False, default=""),
    Column("subject", String(256), nullable=False, default=""),
    Column("roles", Text, nullable=False, default="[]"),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("created_at", Float, nullable=False),
)

session = Table(
    "session",
    METADATA,
    Column("hash", String(64), primary_key=True),
    Column("account", String(128), ForeignKey("account.name"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
)

account_token = Table(
    "account_token",
    METADATA,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("account", String(128), ForeignKey("account.name"), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires", Float),
    Column("used_at", Float),
)

idempotent_request = Table(
    "idempotent_request",
    METADATA,
    Column("account", String(128), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("request", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("at", Float, nullable=False, index=True),
)

SINCE_1 = (token, token_usage, bundle, session, account_token, account, idempotent_request, canary_score)
"""Tables that came later."""

# Append-only by the database itself, so that a fault of ours cannot rewrite history.
_SQLITE = (
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
)
_POSTGRESQL = (
    "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
    "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
)


@event.listens_for(audit, "after_create")
def _guard(_table: Table, connection: Connection, **_: object) -> None:
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)
