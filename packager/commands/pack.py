"""``edge-packager pack``."""

from __future__ import annotations

import argparse

from packager.build.pack import pack_bundle
from packager.build.pipeline import default_cache
from packager.build.plan import BuildPlan
from packager.build.progress import choose_progress
from packager.commands.build import (
    add_behaviour_arguments,
    add_bundle_arguments,
    behaviour_of,
    end_on_terminate,
    output_directory,
    print_bundle,
    template_of,
)
from packager.sources.licenses import check_license
from packager.sources.opening import SourceOptions

EXAMPLES = """examples:
  edge-packager pack ./phi-3.5-mini-int4-cpu --name phi-3.5-mini --version 1.0.0
  edge-packager pack ./model --name assistant --version 1.2.0 --license MIT --out bundles/assistant --json

exit status: 0 packed, 2 wrong option, 3 the folder was refused, 5 the disk, 130 interrupted
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="folder with genai_config.json, graph and tokenizer")
    add_behaviour_arguments(parser)
    add_bundle_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    end_on_terminate()
    plan = BuildPlan(
        source=arguments.model_dir,
        name=arguments.name,
        version=arguments.version,
        epoch=arguments.epoch,
        license=None if arguments.license is None else check_license(arguments.license),
        origin=SourceOptions(chat_template=template_of(arguments)),
        behaviour=behaviour_of(arguments),
    )
    progress = choose_progress(quiet=arguments.json)
    try:
        built = pack_bundle(plan, output_directory(arguments), progress, cache=arguments.cache or default_cache())
    finally:
        progress.close()
    print_bundle(built, as_json=arguments.json)
    return 0
