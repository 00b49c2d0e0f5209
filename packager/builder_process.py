"""The process that runs the model builder."""

from __future__ import annotations

from typing import Any

from packager.child import Reporter, child_main

STEPS = 3


def build(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Run ``parse_extra_options`` and ``create_model``: the builder's command line does no more."""
    from onnxruntime_genai.models import builder

    reporter.progress(1, STEPS)
    fixed = ("", job["checkpoint"], job["out"], job["precision"], job["ep"], job["scratch"])
    options = builder.parse_extra_options(*fixed, list(job["options"]))
    reporter.progress(2, STEPS)
    builder.create_model(*fixed, **options)
    reporter.progress(3, STEPS)
    return {}


if __name__ == "__main__":
    child_main(build)
