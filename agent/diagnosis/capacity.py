"""What becomes of this device's memory and disk with the active bundle: the plan that ``edge-packager fit`` prints."""

from __future__ import annotations

from agent.config import AgentConfig
from agent.diagnosis.finding import Finding
from agent.engine.batched.graph import read_decoder
from agent.engine.config import read_config
from agent.engine.runtime_errors import Declined
from agent.host.facts import disk_available
from agent.host.memory import total_memory
from agent.install.gc import used_bytes
from agent.install.prepack import ADAPTERS
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.opening import open_to_read
from agent.worker.settings import usable_threads
from contract.bundle.device_plan import Box, DevicePlan, plan_device, size_text
from contract.bundle.footprint import measure_footprint
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.identifiers import Digest
from contract.onnx.wire import read_graph_file

NEXT = {
    "beside": "beside this one",
    "either": "beside this one while its requests leave enough memory, else in its place",
    "drain": "in its place",
}
"""How the next version is tried, by :attr:`~contract.bundle.device_plan.DevicePlan.swap`."""


def plan(state_dir: StateDirectory, config: AgentConfig, *, disk_reported: bool = False) -> list[Finding]:
    """Nothing where no bundle is active. ``disk_reported``: another check has found fault with the disk already."""
    if not state_dir.database.is_file():
        return []
    opened = open_to_read(state_dir)
    try:
        state = InstallationState(opened)
        active = state.snapshot().active
        adapted = bool(state.adapters_of(active))
    finally:
        opened.close()
    if active is None or not (state_dir.bundle(active) / MANIFEST_FILE).is_file():
        return []
    return [_finding(plan_active(state_dir, active, config, adapted=adapted), disk_reported=disk_reported)]


def plan_active(state_dir: StateDirectory, digest: Digest, config: AgentConfig, *, adapted: bool = False) -> DevicePlan:
    """How the bundle ``digest`` lives here; ``adapted``: with adapters in force."""
    directory = state_dir.bundle(digest)
    manifest = parse_manifest((directory / MANIFEST_FILE).read_bytes())
    facts = read_config(directory)
    unmapped = "the genai engine is asked for" if config.worker.engine == "genai" else ADAPTERS if adapted else ""
    if not unmapped:
        try:
            read_decoder(directory, facts)
        except Declined as declined:
            unmapped = str(declined)
    room = disk_available(state_dir.root) + used_bytes(state_dir)
    box = Box(
        ram=total_memory(),
        cores=usable_threads(config.worker),
        disk=min(room, config.install.quota_bytes or room),
        prepacked=config.install.prepacked_bytes,
        slots=config.worker.slots,
    )
    footprint = measure_footprint(facts, lambda name: read_graph_file(directory / name))
    return plan_device(footprint, manifest.total_bytes, box, unmapped=unmapped)


def _finding(found: DevicePlan, *, disk_reported: bool) -> Finding:
    footprint, kv = found.footprint, found.kv
    tokens = f"{kv.slots} × {kv.length} tokens in {footprint.kv_type} ({size_text(footprint.kv_token)} each)"
    text = (
        f"of {size_text(found.box.ram)} of memory the weights take {size_text(footprint.weights)}, and requests have "
        f"{tokens} if nothing else runs here; prepacked: {'yes' if found.prepacked else 'no'}, {found.prepacked_why}; "
        f"the next version is tried {NEXT[found.swap]}; "
        f"disk: {size_text(found.disk.version)} with one version, {size_text(found.disk.swap)} in a swap, "
        f"{size_text(found.disk.both)} with both"
    )
    if found.short and not (disk_reported and found.short_of == "disk"):
        return Finding("plan", "bad", text, found.short)
    return Finding("plan", "ok", text)
