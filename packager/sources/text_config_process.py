"""The process that resolves the text part of a configuration, with every default that transformers fills in."""

from __future__ import annotations

import json

from contract.errors import BuildRefused
from packager.sources.jobs import TEXT_CONFIG, TextConfig, TextConfigJob
from packager.subprocess_job import Reporter, child_main


def resolve(job: TextConfigJob, _reporter: Reporter) -> TextConfig:
    """The text configuration of the checkpoint."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(job.checkpoint, trust_remote_code=False).get_text_config()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildRefused(f"transformers cannot read this config.json: {reason}") from error
    return TextConfig(json.loads(config.to_json_string(use_diff=False)))


if __name__ == "__main__":
    child_main(TEXT_CONFIG, resolve)
