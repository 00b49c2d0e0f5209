"""The process that resolves the text part of a configuration, with every default that transformers fills in."""

from __future__ import annotations

import json
from typing import Any

from contract.errors import BuildRefused
from packager.subprocess_job import Reporter, child_main


def resolve(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """The text configuration of ``job["checkpoint"]``."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(job["checkpoint"], trust_remote_code=False).get_text_config()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildRefused(f"transformers cannot read this config.json: {reason}") from error
    resolved: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return resolved


if __name__ == "__main__":
    child_main(resolve)
