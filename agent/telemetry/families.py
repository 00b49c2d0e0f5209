"""Every metric of the page: name, type, what it says, labels; ``docs/TELEMETRY.md`` lists them.

Every label takes its values from a bounded set: reason codes, roles, the sensors and cores of this machine. Process ids
and the like are no labels: each new value would stay in a monitoring server as a series of its own.
"""

from __future__ import annotations

from agent.telemetry.exposition import Family

AGENT_INFO = Family(
    "edge_agent_info",
    "info",
    "Versions of the agent and its runtimes.",
    ("version", "python", "onnxruntime", "onnxruntime_genai", "arch"),
)
START = Family("edge_agent_start_time_seconds", "gauge", "Unix time since which the agent counts.")
READY = Family("edge_ready", "gauge", "1 while prompts are answered.")
REASON = Family(
    "edge_health_reason", "gauge", "1 for each reason that health gives now, 0 for the others.", ("reason",)
)
WARNING = Family("edge_warning", "gauge", "1 for each warning of health, which stops nothing.", ("reason",))
THROTTLE_LEVEL = Family(
    "edge_throttle_level",
    "gauge",
    "How often the number of concurrent answers is halved because the machine is strained.",
)
BROKER_CONNECTED = Family("edge_broker_connected", "gauge", "1 while the agent is connected to its MQTT broker.")
BROKER_CONNECTIONS = Family("edge_broker_connections_total", "counter", "Connections to the broker that were accepted.")
BROKER_OUTBOX = Family("edge_broker_outbox_messages", "gauge", "Messages that the broker has not acknowledged yet.")

BUNDLE_INFO = Family(
    "edge_bundle_info", "info", "The bundle that is served.", ("name", "version", "digest", "security_epoch")
)
ENGINE_INFO = Family(
    "edge_engine_info",
    "info",
    "The engine of the loaded model, how its process is isolated, and whether answers repeat bit for bit.",
    ("engine", "isolation", "reproducible"),
)
ENGINE_SLOTS = Family("edge_engine_slots", "gauge", "Requests that the engine answers at once.")
ENGINE_CONTEXT = Family("edge_engine_context_tokens", "gauge", "Longest prompt and answer together.")
REVOKED = Family("edge_active_bundle_revoked", "gauge", "1 while the active bundle is revoked by its publisher.")
PHASE = Family(
    "edge_install_phase", "gauge", "1 for the phase of the installation, IDLE while there is none.", ("phase",)
)
INSTALLS = Family("edge_bundle_installs_total", "counter", "Bundles that were committed.")
FAILURES = Family(
    "edge_bundle_install_failures_total",
    "counter",
    "Attempts that ended for good without the wanted bundle being active, by reason code.",
    ("reason",),
)
RETRIES = Family(
    "edge_bundle_install_retries_total",
    "counter",
    "Attempts that ended without the wanted bundle being active and are followed by another, by reason code.",
    ("reason",),
)
ROLLBACKS = Family(
    "edge_bundle_rollbacks_total", "counter", "Bundles that were rolled back, by reason code.", ("reason",)
)
SWAPS = Family("edge_bundle_swaps_total", "counter", "Times that another bundle was loaded for serving.")
EXPIRY = Family(
    "edge_trust_metadata_expiry_timestamp_seconds",
    "gauge",
    "Unix time at which the signed metadata of a role expires.",
    ("role",),
)

CRASHES = Family("edge_worker_crashes_total", "counter", "Worker processes that ended by themselves or did not load.")
RESTARTS = Family("edge_worker_restarts_total", "counter", "Worker processes that took the place of one that crashed.")
RESIDENT = Family("edge_process_resident_memory_bytes", "gauge", "Resident memory of our processes.", ("process",))
PROPORTIONAL = Family(
    "edge_process_proportional_memory_bytes",
    "gauge",
    "Memory of our processes with what they share divided between them.",
    ("process",),
)

WAITING = Family("edge_requests_waiting", "gauge", "Requests that wait.")
ACTIVE = Family("edge_requests_active", "gauge", "Requests being answered.")
IN_PROGRESS = Family("edge_tokens_in_progress", "gauge", "Tokens so far of answers that have not ended.")
REQUESTS = Family("edge_requests_total", "counter", "Requests ended, by finish reason or error.", ("outcome",))
REJECTED = Family("edge_requests_rejected_total", "counter", "Requests turned away, by error.", ("error",))
REDELIVERED = Family("edge_requests_redelivered_total", "counter", "Requests that the broker delivered again.")
FRAMES = Family("edge_reply_frames_total", "counter", "Frames of answers sent.")
INPUT_TOKENS = Family("gen_ai_usage_input_tokens_total", "counter", "Tokens of prompts.")
OUTPUT_TOKENS = Family("gen_ai_usage_output_tokens_total", "counter", "Tokens of answers that have ended.")
CACHED_TOKENS = Family("gen_ai_usage_cached_tokens_total", "counter", "Tokens of prompts that the prefix cache had.")
FIRST_TOKEN = Family("gen_ai_server_time_to_first_token_seconds", "histogram", "From acceptance to the first token.")
PER_TOKEN = Family("gen_ai_server_time_per_output_token_seconds", "histogram", "Between tokens.")
DURATION = Family("gen_ai_server_request_duration_seconds", "histogram", "From acceptance to the end.")
QUEUE_TIME = Family("edge_queue_duration_seconds", "histogram", "Waiting for a slot.")

BOOT = Family("edge_boot_time_seconds", "gauge", "Unix time of the machine's start.")
CPU = Family("edge_cpu_usage_ratio", "gauge", "Busy share of all cores together, 0 to 1.")
CORE = Family("edge_cpu_core_usage_ratio", "gauge", "Busy share of each core, 0 to 1.", ("core",))
LOAD = Family("edge_load1", "gauge", "Load average over a minute.")
MEMORY = Family("edge_memory_total_bytes", "gauge", "Main memory.")
AVAILABLE = Family("edge_memory_available_bytes", "gauge", "Memory available without swapping.")
SWAP = Family("edge_swap_used_bytes", "gauge", "Swap space in use.")
SWAP_IN = Family("edge_swap_in_bytes_total", "counter", "Swapped in since boot.")
SWAP_OUT = Family("edge_swap_out_bytes_total", "counter", "Swapped out since boot.")
DISK = Family("edge_disk_size_bytes", "gauge", "Size of the file system that holds the agent's state.")
DISK_FREE = Family("edge_disk_free_bytes", "gauge", "Free space for the agent's state.")
DISK_BUNDLES = Family("edge_disk_bundles_bytes", "gauge", "Taken by bundles, prepacked weights and partial downloads.")
DISK_READ = Family("edge_disk_read_bytes_total", "counter", "Read by the disks since boot.")
DISK_WRITTEN = Family("edge_disk_written_bytes_total", "counter", "Written by the disks since boot.")
SENT = Family("edge_network_sent_bytes_total", "counter", "Sent since boot.", ("interface",))
RECEIVED = Family("edge_network_received_bytes_total", "counter", "Received since boot.", ("interface",))
PRESSURE = Family(
    "edge_pressure_stalled_ratio",
    "gauge",
    "Share of 10 s in which some or all tasks waited for a resource, 0 to 1.",
    ("resource", "kind"),
)
TEMPERATURE = Family("edge_temperature_celsius", "gauge", "Temperatures.", ("sensor",))
TEMPERATURE_LIMIT = Family(
    "edge_temperature_limit_celsius", "gauge", "Where a sensor's maker calls it too hot.", ("sensor",)
)
FREQUENCY = Family("edge_cpu_frequency_hertz", "gauge", "Mean clock of the cores.")
THROTTLE_EVENTS = Family(
    "edge_cpu_thermal_throttle_events_total", "counter", "Times that the cores slowed down to cool, since boot."
)
THROTTLED = Family("edge_cpu_thermal_throttled", "gauge", "1 while the cores are slowed down to cool.")
UNDERVOLTAGE = Family("edge_power_undervoltage", "gauge", "1 while the power supply's voltage is too low.")

FAMILIES: tuple[Family, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Family))
"""All of them, in the order in which the page has them."""
