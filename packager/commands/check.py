"""``edge-packager check``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from packager.build.pipeline import default_cache
from packager.build.progress import choose_progress
from packager.commands.build import end_on_terminate
from packager.evaluate.verify import verify_bundle

EXAMPLES = """examples:
  edge-packager check smollm2-1.0.0
  edge-packager check bundles/assistant --json
  edge-packager check bundles/assistant-legal --base bundles/assistant

exit status: 0 whole and working, 2 not a bundle, 3 refused with the reason, 130 interrupted
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    parser.add_argument("--base", type=Path, metavar="BUNDLE", help="of an adapter bundle: the bundle it belongs to")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where the log goes ($EDGE_CACHE)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, no progress")


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    end_on_terminate()
    log = (arguments.cache or default_cache()) / "logs" / "check.log"
    progress = choose_progress(quiet=arguments.json)
    try:
        found = verify_bundle(arguments.bundle, log, progress, arguments.base)
    finally:
        progress.close()
    manifest, checked = found.bundle.manifest, found.checked
    drift = [
        round(result.mean_nll - canary.mean_nll, 4)
        for canary, result in zip(manifest.canary, checked.canaries, strict=False)
    ]
    shown, seen = manifest.picture_canary, checked.seen
    if shown is not None and seen is not None:
        drift.append(round(seen.mean_nll - shown.mean_nll, 4))
    if arguments.json:
        result = {
            "bundle": manifest.reference,
            "digest": found.bundle.digest,
            "bytes": manifest.total_bytes,
            "canary_drift": drift,
            "peak_rss_bytes": checked.peak_rss_bytes,
            "load_seconds": checked.load_seconds,
        }
        print(json.dumps(result))
    else:
        print(f"{manifest.reference}  {found.bundle.digest}")
        print(f"  {len(manifest.files)} files, {manifest.total_bytes / 1e6:.1f} MB, every byte as listed")
        print(f"  loads in {checked.load_seconds:.2f} s, peak {checked.peak_rss_bytes / 2**20:.0f} MiB")
        print(f"  canaries within {max(map(abs, drift), default=0.0):.4f} nats of the build")
    return 0
