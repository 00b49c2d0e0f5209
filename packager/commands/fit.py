"""``edge-packager fit``."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import msgspec

from contract.bundle.device_plan import LEAST_TOKENS, MAX_SLOTS, Box, DevicePlan, plan_device
from contract.bundle.footprint import measure_footprint
from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.errors import UsageError
from contract.onnx.graph import OnnxModel
from contract.onnx.wire import read_graph_file
from packager.evaluate.comparison import StoredBundle, find_bundle

EXAMPLES = """examples:
  edge-packager fit phi-1.0.0 --ram 4G --cores 4
  edge-packager fit phi@1.0.0 --repo repository --ram 3800M --cores 4 --disk 12G --context 2048
  edge-packager fit phi-1.0.0 --ram 8G --cores 4 --json

Sizes are binary (4G = 4 GiB); a board sold with 4 GB tells Linux of a little less (free -m).
exit status: 0 it fits, 1 it does not, 2 the command line or not a bundle, 3 a bundle that is not valid
"""

EXIT_SHORT = 1

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LEAST_SIZE = UNITS["M"]
"""Less is a size whose unit was forgotten."""

MOST_CORES = 1024


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle directory, or NAME@VERSION of --repo")
    parser.add_argument("--repo", type=Path, default=Path("repository"), metavar="DIR", help="default: ./repository")
    parser.add_argument("--ram", required=True, metavar="SIZE", help="memory of the device, like 4G or 3800M")
    parser.add_argument("--cores", type=int, default=4, metavar="N", help="its cores (4)")
    parser.add_argument("--disk", metavar="SIZE", help="disk that bundles may take there, like 16G")
    parser.add_argument("--context", type=int, metavar="TOKENS", help=f"that a request must have ({LEAST_TOKENS})")
    parser.add_argument(
        "--slots", type=int, default=0, metavar="N", help="requests at once, as [worker] slots has them (0: as planned)"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    box = read_box(arguments)
    found = find_bundle(arguments.bundle, arguments.repo)
    if found.manifest.base is not None:
        raise UsageError(
            f"{found.manifest.reference} is an adapter and fits where its base does: name that", field="bundle"
        )
    plan = plan_bundle(found, box, arguments.context)
    if arguments.json:
        document = msgspec.to_builtins(plan)
        document["footprint"]["weights"] = plan.footprint.weights
        print(json.dumps({"bundle": found.manifest.reference, "fits": plan.fits, **document}))
    else:
        print("\n".join(_lines(found, plan)))
    return 0 if plan.fits else EXIT_SHORT


def plan_bundle(found: StoredBundle, box: Box, tokens: int | None = None) -> DevicePlan:
    """The plan of a bundle as it lies in a directory or a repository."""
    if CONFIG_FILE not in found.files:
        raise UsageError(f"{found.manifest.reference} has no {CONFIG_FILE}: it is not a whole bundle", field="bundle")

    def read_graph(name: str) -> OnnxModel:
        if name not in found.files:
            raise UsageError(f"{found.manifest.reference} has no {name}: it is not a whole bundle", field="bundle")
        return read_graph_file(found.files[name])

    facts = read_genai_config(found.files[CONFIG_FILE].read_bytes())
    if tokens is not None and tokens > facts.context_length:
        raise UsageError(
            f"--context {tokens} is more than {found.manifest.reference} was made for: its model has "
            f"{facts.context_length} tokens",
            field="context",
        )
    return plan_device(
        measure_footprint(facts, read_graph),
        found.manifest.total_bytes,
        box,
        tokens=LEAST_TOKENS if tokens is None else tokens,
    )


def read_box(arguments: argparse.Namespace) -> Box:
    """The device that the command line describes.

    Raises:
        UsageError: a size or a number that is none.
    """
    if not 1 <= arguments.cores <= MOST_CORES:
        raise UsageError(f"--cores must be between 1 and {MOST_CORES}", field="cores")
    if arguments.context is not None and arguments.context < 1:
        raise UsageError("--context must be at least 1 token", field="context")
    if not 0 <= arguments.slots <= MAX_SLOTS:
        raise UsageError(f"--slots must be between 0 and {MAX_SLOTS}", field="slots")
    disk = None if arguments.disk is None else read_size(arguments.disk, "disk")
    return Box(ram=read_size(arguments.ram, "ram"), cores=arguments.cores, disk=disk, slots=arguments.slots)


def read_size(text: str, field: str) -> int:
    """Bytes: ``4G``, ``3.8GiB``, ``512M``.

    Raises:
        UsageError: it is no size, or none that a device has.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UsageError(f"--{field} {text!r} is no size: write it like 4G or 3800M", field=field)
    size = int(float(match[1]) * UNITS[match[2].upper()])
    if size < LEAST_SIZE:
        raise UsageError(
            f"--{field} {text!r} is less than a megabyte; is its unit missing? write it, like 4G or 3800M", field=field
        )
    return size


def _lines(found: StoredBundle, plan: DevicePlan) -> list[str]:
    """For a person."""
    manifest = found.manifest
    budget = manifest.budget
    lines = [f"{manifest.reference} on {plan.box.cores} cores: {'it fits' if plan.fits else 'it does not fit'}", ""]
    lines += [f"{what:18} {much:>20}  {word}".rstrip() for what, much, word in plan.rows]
    if budget.tokens_per_second:
        lines.append(
            f"{'speed where built':18} {budget.tokens_per_second:>11.1f} tokens/s  on {budget.threads} threads of "
            f"{budget.host}"
        )
    return [*lines, "", plan.short] if plan.short else lines
