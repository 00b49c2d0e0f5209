"""What each quantizer costs and keeps, on one source, against the source itself.

    python benchmarks/quality.py MODEL.gguf [--text FILE ...] [--quantizers rtn k-quant gptq-fast gptq auto-round]
                                            [--block-sizes 32 64]

Builds a bundle with each quantizer and block size, reads the same texts with all of them, and prints one table; ratios
are to the first bundle. Bundles are kept in ``--work`` and not built again.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from contract.bundle.manifest import MANIFEST_FILE, Manifest, parse_manifest
from packager.build.pipeline import build_bundle, default_cache
from packager.build.plan import BLOCK_SIZES, QUANTIZERS, BuildPlan
from packager.build.progress import choose_progress
from packager.evaluate.check import check_model
from packager.evaluate.gates import QualityPlan
from packager.evaluate.jobs import Comparison
from packager.evaluate.source import view_source
from packager.evaluate.text import EvalText, read_text, reference_text
from packager.sources.opening import open_source


def build(source: str, quantizer: str, block_size: int, work: Path) -> tuple[Path, Manifest]:
    """The bundle of ``source`` made with ``quantizer``."""
    directory = work / (quantizer if block_size == 32 else f"{quantizer}-{block_size}")
    if not directory.is_dir():
        accepted = QualityPlan(accept="a benchmark")
        plan = BuildPlan(source, "quality", "1.0.0", quantizer=quantizer, block_size=block_size, quality=accepted)
        progress = choose_progress()
        try:
            build_bundle(plan, directory, progress)
        finally:
            progress.close()
    return directory, parse_manifest((directory / MANIFEST_FILE).read_bytes())


def compare(source: str, directory: Path, text: EvalText, work: Path) -> Comparison:
    """The bundle in ``directory`` beside its source on ``text``."""
    log = work / "quality.log"
    opened = open_source(source, default_cache(), log, lambda done, total: None)
    heard = view_source(opened.checkpoint, text, (), default_cache(), log)
    compared = check_model(directory, log, questions=(), text=text.text, source=heard).compared
    assert compared is not None
    return compared


def main() -> None:
    """Build, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="GGUF file or checkpoint directory")
    parser.add_argument("--text", action="append", default=[], type=Path, help="more text to read")
    every = ["rtn", "k-quant", "gptq-fast", "gptq", "auto-round"]
    parser.add_argument("--quantizers", nargs="+", default=every, choices=sorted(QUANTIZERS))
    parser.add_argument("--block-sizes", nargs="+", type=int, default=[32], choices=BLOCK_SIZES)
    parser.add_argument("--work", type=Path, default=default_cache() / "benchmark-quality")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    texts = [reference_text(), *(read_text(path, "--text") for path in arguments.text)]
    print("| text | quantizer, block | MB | × | perplexity (source) | KL | × | top-1 | tokens/s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for text in texts:
        first: tuple[int, float] | None = None
        for quantizer, block_size in product(arguments.quantizers, arguments.block_sizes):
            directory, manifest = build(arguments.source, quantizer, block_size, arguments.work)
            size = sum(entry.size for entry in manifest.files if entry.role == "model")
            found = compare(arguments.source, directory, text, arguments.work)
            first = first or (size, found.kl)
            print(
                f"| {text.name} | {quantizer}, {block_size} | {size / 1e6:.1f} | {size / first[0]:.3f} "
                f"| {found.perplexity:.2f} ({found.source_perplexity:.2f}) | {found.kl:.4f} "
                f"| {found.kl / first[1]:.2f} | {100 * found.top1_agreement:.1f} % "
                f"| {manifest.budget.tokens_per_second:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
