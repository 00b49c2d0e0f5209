"""``edge-packager build``."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle.manifest import Behaviour, GenerationDefaults
from contract.errors import UsageError
from packager.build.adapter_bundle import build_adapter_bundle
from packager.build.behaviour import FIELDS, read_generation, read_system_prompt, read_template
from packager.build.bundle import BuiltBundle
from packager.build.kv_choice import MAX_MORE_KL
from packager.build.pipeline import DryRun, build_bundle, default_cache, dry_run
from packager.build.plan import AUTO, BLOCK_SIZES, CALIBRATED, EMBEDDINGS, FAST, OFFERED, QUANTIZERS, BuildPlan
from packager.build.progress import choose_progress
from packager.build.recipe import RecordedBuild, read_recipe, read_recorded_build, replay
from packager.evaluate.gates import QualityPlan
from packager.sources.checkpoint import TEMPLATE_FILE
from packager.sources.licenses import check_license
from packager.sources.opening import SourceOptions

EXAMPLES = """examples:
  edge-packager build microsoft/Phi-3.5-mini-instruct --name phi-3.5-mini --version 1.0.0
  edge-packager build SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2 --version 1.0.0
  edge-packager build ./my-checkpoint --name assistant --version 2.1.0 --quantizer gptq --out bundles/assistant
  edge-packager build ./my-checkpoint --name assistant --version 2.1.1 --precision int8 --json
  edge-packager build ./my-checkpoint --name assistant --version 2.2.0 --adapter-slots --out assistant
  edge-packager build ./my-checkpoint --adapter ./my-lora --base assistant --name assistant-legal --version 1.0.0
  edge-packager build ./my-checkpoint --name clerk --version 1.0.0 --system-prompt "Answer in one sentence." \\
      --generation temperature=0.3,max_tokens=200
  edge-packager build ./my-checkpoint --name assistant --version 2.1.2 --eval manual.txt --behaviour cases.json

  edge-packager build --recipe assistant.toml --dry-run
  edge-packager build ./my-checkpoint --from assistant-2.1.0 --out again

exit status: 0 built, 2 wrong option, 3 the source or the build was refused, 5 the disk, 130 interrupted
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", help="hub model (OWNER/MODEL), GGUF file or checkpoint directory"
    )
    parser.add_argument("--precision", default="int4", metavar="P", help=f"one of {', '.join(OFFERED['cuda'])} (int4)")
    parser.add_argument("--ep", default="cpu", metavar="EP", help=f"one of {', '.join(OFFERED)} (cpu)")
    parser.add_argument(
        "--quantizer",
        default=AUTO,
        metavar="Q",
        help=f"one of {', '.join(QUANTIZERS)} ({FAST} for int4 on cpu, else rtn)",
    )
    parser.add_argument(
        "--calibration",
        default="auto",
        metavar="FILE",
        help=f"text for {', '.join(CALIBRATED)} and --kv; self: sampled from the source; shipped: a short one "
        f"of our own (shipped for {FAST}, else self)",
    )
    parser.add_argument(
        "--kv",
        default="auto",
        metavar="T",
        help="key-value cache: float or int8, a quarter of its memory (auto: int8 where heads share none and it costs "
        f"at most {MAX_MORE_KL} nats, measured)",
    )
    parser.add_argument(
        "--embedding",
        default="int8",
        metavar="T",
        help=f"embedding that is not shared with the lm_head: one of {', '.join(EMBEDDINGS)} (int8)",
    )
    parser.add_argument(
        "--block-size", type=int, default=32, metavar="N", help=f"one of {', '.join(map(str, BLOCK_SIZES))} (32)"
    )
    parser.add_argument("--accuracy-level", type=int, default=4, metavar="N", help="0 to 4; 4 computes in int8 (4)")
    parser.add_argument("--adapter-slots", action="store_true", help="give the graph places for adapter bundles")
    add_source_arguments(parser)
    add_quality_arguments(parser)
    add_behaviour_arguments(parser)
    add_recipe_arguments(parser)
    add_bundle_arguments(parser, named=False)
    # Left out of the namespace where nothing is given, so that a recipe can be told from the command line.
    parser.set_defaults(option_defaults={action.dest: action.default for action in parser._actions})
    for action in parser._actions:
        action.default = argparse.SUPPRESS


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the options come from, and whether they are only looked at."""
    asked = parser.add_argument_group("recipe")
    asked.add_argument("--recipe", type=Path, metavar="FILE", help="TOML file of options, with _ for - in their names")
    asked.add_argument(
        "--from",
        dest="recorded",
        type=Path,
        metavar="FILE",
        help="evidence/provenance.json of a bundle, or the bundle: make the same bytes again",
    )
    asked.add_argument("--dry-run", action="store_true", help="say what would be built and what it takes; make nothing")


def complete(given: dict[str, Any], defaults: dict[str, Any]) -> tuple[argparse.Namespace, RecordedBuild | None]:
    """The command line ``given``, a recipe where it names one, and the ``defaults``; and the build to make again.

    Raises:
        UsageError: a recipe that cannot be used, or no source, name or version.
    """
    recorded = None
    if given.get("recipe") is not None and given.get("recorded") is not None:
        raise UsageError("--recipe and --from exclude each other", field="from")
    if given.get("recipe") is not None:
        given = {**read_recipe(given["recipe"]), **given}
    elif given.get("recorded") is not None:
        recorded = read_recorded_build(given["recorded"])
        given = replay(recorded, given)
    for name, flag in (("source", "SOURCE"), ("name", "--name"), ("version", "--version")):
        if given.get(name) is None:
            raise UsageError(f"{flag} is required, on the command line or in a recipe", field=name)
    for name in ("adapter", "base", "hub_cache", "cache", "out", "chat_template"):
        if given.get(name) is not None:
            given[name] = Path(given[name])
    return argparse.Namespace(**{**defaults, **given}), recorded


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """How the source is opened."""
    asked = parser.add_argument_group("source")
    asked.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub model (its default branch)")
    asked.add_argument("--hub-cache", type=Path, metavar="DIR", help="the hub's cache (your own, $HF_HOME)")
    asked.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter, with --merge-adapter or --base")
    asked.add_argument("--merge-adapter", action="store_true", help="add the adapter to the weights before building")
    asked.add_argument("--base", type=Path, metavar="BUNDLE", help="make the adapter a bundle of its own for this one")
    asked.add_argument("--text-only", action="store_true", help="of a model that also sees, the one that reads")
    asked.add_argument("--trust-remote-code", action="store_true", help="run Python files that the checkpoint brings")


def source_options(arguments: argparse.Namespace) -> SourceOptions:
    """What :func:`add_source_arguments` read.

    Raises:
        UsageError: an adapter without a word on what to do with it.
    """
    ways = int(arguments.merge_adapter) + (arguments.base is not None)
    if ways != (arguments.adapter is not None):
        raise UsageError(
            "--adapter DIR goes with one of --merge-adapter, which adds it to the weights, and --base BUNDLE, which "
            "makes it a bundle of its own for a bundle built with --adapter-slots",
            field="adapter",
        )
    return SourceOptions(
        revision=arguments.revision,
        hub_cache=arguments.hub_cache,
        adapter=arguments.adapter,
        chat_template=template_of(arguments),
        trust_code=arguments.trust_remote_code,
        text_only=arguments.text_only,
    )


def add_quality_arguments(parser: argparse.ArgumentParser) -> None:
    """What the build is compared with its source on, and how far apart they may be."""
    asked = parser.add_argument_group("quality, against the source in its own precision")
    asked.add_argument("--eval", metavar="FILE", help="text to read (pages of Python's own documentation)")
    asked.add_argument("--behaviour", metavar="FILE", help="JSON cases: prompts with contains, matches or refuses")
    asked.add_argument("--max-kl", type=float, metavar="X", help="largest KL divergence, in nats (int4 0.5, int8 0.1)")
    asked.add_argument(
        "--max-perplexity-ratio", type=float, metavar="X", help="largest perplexity over the source's (1.5, int8 1.1)"
    )
    asked.add_argument(
        "--min-agreement", type=float, metavar="X", help="least share of the source's top tokens (int4 0.4, int8 0.7)"
    )
    asked.add_argument("--accept-quality", metavar="REASON", help="build in spite of these; the manifest says why")


def quality_plan(arguments: argparse.Namespace) -> QualityPlan:
    """What :func:`add_quality_arguments` read."""
    return QualityPlan(
        eval_file=arguments.eval,
        behaviour_file=arguments.behaviour,
        max_kl=arguments.max_kl,
        max_perplexity_ratio=arguments.max_perplexity_ratio,
        min_agreement=arguments.min_agreement,
        accept=arguments.accept_quality,
    )


def add_behaviour_arguments(parser: argparse.ArgumentParser) -> None:
    """Signed defaults of the bundle."""
    asked = parser.add_argument_group("behaviour: signed defaults, which a request may override")
    asked.add_argument("--system-prompt", metavar="TEXT", help="stands before messages without one; @FILE reads a file")
    asked.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja template in place of the source's")
    asked.add_argument(
        "--generation",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help=f"any of {', '.join(FIELDS)} (what the source's generation_config.json says)",
    )


def behaviour_of(arguments: argparse.Namespace) -> Behaviour:
    """What :func:`add_behaviour_arguments` read.

    Raises:
        UsageError: a value that no request could have.
    """
    return Behaviour(
        system_prompt=read_system_prompt(arguments.system_prompt),
        chat_template=None if arguments.chat_template is None else TEMPLATE_FILE,
        generation=arguments.generation
        if isinstance(arguments.generation, GenerationDefaults)
        else read_generation(arguments.generation),
    )


def template_of(arguments: argparse.Namespace) -> str | None:
    """The chat template that :func:`add_behaviour_arguments` was given."""
    return None if arguments.chat_template is None else read_template(arguments.chat_template)


def add_bundle_arguments(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """What ``build`` and ``pack`` share; ``named``: whether argparse asks for name and version."""
    parser.add_argument("--name", required=named, metavar="N", help="name of the bundle")
    parser.add_argument("--version", required=named, metavar="V", help="its version, MAJOR.MINOR.PATCH")
    parser.add_argument("--epoch", type=int, default=0, metavar="N", help="security epoch (0)")
    parser.add_argument("--license", metavar="SPDX", help="SPDX expression, if the source does not say it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="bundle directory to make (./NAME-VERSION)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="converted checkpoints and logs ($EDGE_CACHE)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, no progress")


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    end_on_terminate()
    given = vars(arguments)
    arguments, recorded = complete(given, given.pop("option_defaults"))
    plan = BuildPlan(
        source=arguments.source,
        name=arguments.name,
        version=arguments.version,
        epoch=arguments.epoch,
        precision=arguments.precision,
        ep=arguments.ep,
        quantizer=arguments.quantizer,
        calibration=arguments.calibration,
        kv=arguments.kv,
        embedding=arguments.embedding,
        block_size=arguments.block_size,
        accuracy_level=arguments.accuracy_level,
        license=None if arguments.license is None else check_license(arguments.license),
        adapter_slots=arguments.adapter_slots,
        quality=quality_plan(arguments),
        origin=source_options(arguments),
        behaviour=behaviour_of(arguments),
        source_sha256=None if recorded is None else recorded.source.get("sha256"),
    )
    progress = choose_progress(quiet=arguments.json)
    if recorded is not None and recorded.tools_changed:
        progress.message(f"built with other versions, so its bytes may differ: {', '.join(recorded.tools_changed)}")
    out, cache = output_directory(arguments), arguments.cache or default_cache()
    try:
        if arguments.base is not None:
            if plan.behaviour != Behaviour():
                raise UsageError(
                    "an adapter bundle has the behaviour of the bundle that it belongs to: leave --system-prompt, "
                    "--chat-template and --generation out",
                    field="behaviour",
                )
            if arguments.dry_run:
                raise UsageError("--dry-run is for bundles that stand alone: leave --base out", field="dry-run")
            built = build_adapter_bundle(plan, arguments.base, out, progress, cache=cache)
        elif arguments.dry_run:
            print_dry_run(plan, dry_run(plan, out, progress, cache=cache), as_json=arguments.json)
            return 0
        else:
            built = build_bundle(plan, out, progress, cache=cache)
    finally:
        progress.close()
    print_bundle(built, as_json=arguments.json)
    return 0


def print_dry_run(plan: BuildPlan, found: DryRun, *, as_json: bool) -> None:
    """What would be built, for a person or a script."""
    if as_json:
        print(msgspec.json.encode({"bundle": f"{plan.name}@{plan.version}", **msgspec.to_builtins(found)}).decode())
        return
    print(f"{plan.name}@{plan.version} would be built from {found.source['kind']} {found.source['name']}")
    print(f"  {found.architecture}, {found.parameters / 1e6:.1f} M parameters, {found.precision} by {found.quantizer}")
    print(f"  licence {found.license}, {'with' if found.chat_template else 'without'} a chat template")
    if found.behaviour is not None:
        print(f"  signed defaults: {msgspec.json.encode(found.behaviour).decode()}")
    print(f"  {found.estimate}")


def output_directory(arguments: argparse.Namespace) -> Path:
    """Where the bundle goes."""
    return (arguments.out or Path(f"{arguments.name}-{arguments.version}")).absolute()


def end_on_terminate() -> None:
    """SIGTERM ends a command as Ctrl-C does: children gone, nothing half-written."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def print_bundle(built: BuiltBundle, *, as_json: bool) -> None:
    """The result, for a person or a script."""
    manifest = built.manifest
    if as_json:
        result = {
            "bundle": manifest.reference,
            "digest": built.digest,
            "directory": str(built.directory),
            "bytes": manifest.total_bytes,
            "files": len(manifest.files),
            "precision": manifest.model.precision,
            "peak_rss_bytes": manifest.budget.peak_rss_bytes,
            "load_seconds": manifest.budget.load_seconds,
            "tokens_per_second": manifest.budget.tokens_per_second,
            "quality": manifest.quality,
        }
        print(json.dumps(result))
        return
    model, budget = manifest.model, manifest.budget
    print(f"{manifest.reference}  {built.digest}")
    print(f"  {built.directory}: {len(manifest.files)} files, {manifest.total_bytes / 1e6:.1f} MB")
    print(
        f"  {model.architecture}, {model.parameters / 1e6:.1f} M parameters, {model.precision}, "
        f"context {model.context_length}"
    )
    print(
        f"  here: {budget.tokens_per_second:.0f} tokens/s on {budget.threads} threads, loads in "
        f"{budget.load_seconds:.2f} s, peak {budget.peak_rss_bytes / 2**20:.0f} MiB"
    )
    if "kl" in manifest.quality:
        quality = manifest.quality
        print(
            f"  against the source: KL {quality['kl']:.3f} nats, perplexity {quality['perplexity']['value']:.4g} for "
            f"{quality['source_perplexity']:.4g}, same top token {100 * quality['top1_agreement']:.1f} %"
        )
        if quality.get("tokenizer_same") is False:
            print("  its tokenizer makes other tokens of a text than the source's")
    if "pictures" in manifest.quality:
        seen, vision = manifest.quality["pictures"], manifest.quality["vision"]
        print(
            f"  about pictures: KL {seen['kl']:.3f} nats, same top token {100 * seen['top1_agreement']:.1f} %; encoder "
            f"{vision['encoder']}, features with a cosine of {vision['cosine']:.6f} at least"
        )
    for canary in manifest.canary[:1]:
        print(f"  asked: {canary.expected_text.strip()!r}")
