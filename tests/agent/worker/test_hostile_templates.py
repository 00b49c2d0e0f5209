"""A worker shut in as on a device, whose bundle's chat template means harm: it costs the requests that use it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.worker.supervisor import WorkerProcess
from contract.chat.template import FAILED
from tests.agent.worker.test_real_worker import question, with_worker
from tests.agent.worker.test_supervisor import Listener

HOSTILE = (
    "{% set asked = messages[0].content %}"
    "{% if asked == 'time' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% elif asked == 'range' %}{{ range(10**9)|list }}"
    "{% elif asked == 'text' %}{{ 'x' * 10**9 }}"
    "{% elif asked == 'memory' %}{{ 'x'.ljust(10**9) }}"
    "{% elif asked == 'output' %}{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"
    "{% elif asked == 'depth' %}{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"
    "{% elif asked == 'escape' %}{{ ''.__class__.__mro__ }}"
    "{% elif asked == 'roles' %}{{ raise_exception('roles must alternate') }}"
    "{% else %}<|im_start|>user\n{{ asked }}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
)
ATTACKS = ("time", "range", "text", "memory", "output", "depth", "escape")


@pytest.mark.parametrize("engine", ["batched", "genai"])
def test_a_hostile_template_costs_its_requests_alone(tiny_bundle: Path, tmp_path: Path, engine: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "chat_template.jinja").write_text(HOSTILE)

    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        assert "seccomp" in worker.isolation
        for number, attack in enumerate([*ATTACKS, "roles", "What is the capital of France?"], start=1):
            worker.admit(question(number, messages=[{"role": "user", "content": attack}]))
            await listener.ended(number)
        for number in range(1, len(ATTACKS) + 1):
            assert listener.outcomes[number].refused_kind == FAILED, ATTACKS[number - 1]
        refused = listener.outcomes[len(ATTACKS) + 1]
        assert refused.refused_field == "messages"
        assert refused.reject is not None
        assert "roles must alternate" in refused.reject.message
        assert "Paris" in listener.outcomes[len(ATTACKS) + 2].text

    with_worker(bundle, scenario, engine=engine)


@pytest.mark.parametrize("template", ["{% for %}", "{{ 10**10**10 * 'x' }}" + "{% if a %}" * 400])
def test_a_template_that_cannot_be_read_leaves_prompts(tiny_bundle: Path, tmp_path: Path, template: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "chat_template.jinja").write_text(template)

    async def scenario(worker: WorkerProcess, listener: Listener) -> None:
        worker.admit(question(1))
        worker.admit(
            question(2, messages=None, prompt="<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n")
        )
        await listener.ended(1, 2)
        assert listener.outcomes[1].refused_kind == FAILED
        assert listener.outcomes[2].text == "Hello, how are you today?"

    with_worker(bundle, scenario)
