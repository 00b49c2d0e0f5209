"""Stable machine-readable reason codes: what a refusal is called on MQTT, in ``audit.jsonl`` and in ``--json`` output.

A code is never renamed or reused; ``docs/SECURITY.md`` explains each one.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why something was refused, given up on or rolled back."""

    # Outside bytes that cannot be read strictly.
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    DUPLICATE_KEY = "duplicate_key"
    NOT_FINITE = "not_finite"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NUMBER_RANGE = "number_range"
    SCHEMA_INVALID = "schema_invalid"
    UNSAFE_PATH = "unsafe_path"
    UNSAFE_NAME = "unsafe_name"

    # Trust.
    SIGNATURE_INVALID = "signature_invalid"
    THRESHOLD_NOT_MET = "threshold_not_met"
    KEY_REFUSED = "key_refused"
    METADATA_INVALID = "metadata_invalid"
    METADATA_ROLLBACK = "metadata_rollback"
    METADATA_MIXED = "metadata_mixed"
    EXPIRED = "expired"
    NOT_LISTED = "not_listed"
    REVOKED = "revoked"
    SOURCE_OLDER = "source_older"
    TRUST_STATE_LOST = "trust_state_lost"
    EPOCH_ROLLBACK = "epoch_rollback"

    # Contents of a bundle.
    DIGEST_MISMATCH = "digest_mismatch"
    SIZE_MISMATCH = "size_mismatch"
    FILE_MISSING = "file_missing"
    FILE_EXTRA = "file_extra"
    CHUNKS_INVALID = "chunks_invalid"
    TAR_INVALID = "tar_invalid"
    CONFIG_NOT_ALLOWED = "config_not_allowed"
    GRAPH_INVALID = "graph_invalid"
    MODEL_INCOMPLETE = "model_incomplete"
    ADAPTER_INVALID = "adapter_invalid"

    # The device does not fit the bundle.
    REQUIRES_UNKNOWN = "requires_unknown"
    REQUIRES_ARCH = "requires_arch"
    REQUIRES_ISA = "requires_isa"
    REQUIRES_RAM = "requires_ram"
    REQUIRES_DISK = "requires_disk"
    REQUIRES_RUNTIME = "requires_runtime"
    REQUIRES_AGENT = "requires_agent"
    REQUIRES_EP = "requires_ep"
    BASE_MISSING = "base_missing"

    # What the device was asked to do.
    DESIRED_INVALID = "desired_invalid"
    SOURCE_NOT_CONFIGURED = "source_not_configured"
    POLICY_LOOSER = "policy_looser"
    QUARANTINED = "quarantined"
    SWAP_LIMIT = "swap_limit"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"

    # The candidate did not hold.
    CANARY_LOAD_FAILED = "canary_load_failed"
    CANARY_NOT_FINITE = "canary_not_finite"
    CANARY_DRIFT = "canary_drift"
    CANARY_NO_STOP = "canary_no_stop"
    CANARY_MEMORY = "canary_memory"
    CANARY_TIMEOUT = "canary_timeout"
    PROBATION_CRASHED = "probation_crashed"
    PROBATION_ERRORS = "probation_errors"
    PROBATION_TOO_SLOW = "probation_too_slow"

    # Not a verdict on the bundle: try again later or elsewhere.
    SOURCE_UNAVAILABLE = "source_unavailable"
    SOURCE_TOO_SLOW = "source_too_slow"
    STORE_FULL = "store_full"
    STORE_BROKEN = "store_broken"
    STORED_DATA_INVALID = "stored_data_invalid"
    STATE_LOCKED = "state_locked"
    ENGINE_FAILED = "engine_failed"
    INTERNAL_ERROR = "internal_error"
    INTERRUPTED = "interrupted"

    # Not a fault: somebody wanted it so.
    OPERATOR = "operator"


class BrokerReason(StrEnum):
    """What ``health`` warns of between a device and its broker; none of it stops the device."""

    MESSAGE_TOO_LARGE = "message_too_large"
    CLIENT_ID_TAKEN = "client_id_taken"
    GROUPS_NOT_DELIVERED = "groups_not_delivered"


class HealthReason(StrEnum):
    """What ``health`` gives as a reason: why no prompt is answered now, or (from ``UNLOADED`` on) what holds
    although the device is ready.
    """

    LOADING = "loading"
    NO_MODEL = "no_model"
    SWAPPING = "swapping"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    STORE_UNAVAILABLE = "store_unavailable"
    STOPPING = "stopping"
    UNLOADED = "unloaded"
    STORE_READ_ONLY = "store_read_only"
    THROTTLED_TEMPERATURE = "throttled_temperature"
    THROTTLED_MEMORY = "throttled_memory"
