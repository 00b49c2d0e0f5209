"""The one way to render a chat template, beside transformers' own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from contract.chat.files import ChatFiles, read_chat_files
from contract.chat.limits import Allowance
from contract.chat.template import FAILED, ChatTemplate
from contract.errors import RequestInvalid
from tests.chat_templates import CONVERSATIONS, SPECIAL, TEMPLATES, TOOLS, USER

DAY = datetime(2026, 3, 4, 5, 6, 7)  # noqa: DTZ001 - as transformers, local time


def template(text: str, **special: str) -> ChatTemplate:
    return ChatTemplate(ChatFiles({"default": text}, special or SPECIAL), now=lambda: DAY)


@pytest.fixture(scope="session")
def theirs() -> Any:
    """transformers' tokenizer with the special tokens of the corpus, on a fixed day."""
    import transformers.utils.chat_template_utils as utils
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return DAY

    before, utils.datetime = utils.datetime, Fixed
    yield PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    utils.datetime = before


@pytest.mark.parametrize("family", TEMPLATES)
def test_it_renders_as_transformers_does(family: str, theirs: Any) -> None:
    ours, rendered, refused = template(TEMPLATES[family]), 0, 0
    assert ours.fault is None
    for name, (messages, more) in CONVERSATIONS.items():
        tools, variables = more.get("tools"), {key: value for key, value in more.items() if key != "tools"}
        for asks in (True, False):
            try:
                expected = theirs.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=asks, chat_template=TEMPLATES[family], **more
                )
            except Exception as error:
                with pytest.raises(RequestInvalid) as found:
                    ours.render(messages, tools=tools, add_generation_prompt=asks, variables=variables)
                assert found.value.code == 400
                assert " ".join(str(error).split())[:60] in found.value.message, name
                refused += 1
            else:
                got = ours.render(messages, tools=tools, add_generation_prompt=asks, variables=variables)
                assert got == expected, name
                rendered += 1
    assert rendered > 10, f"{rendered} rendered, {refused} refused"


def test_what_a_template_says_is_told() -> None:
    with pytest.raises(RequestInvalid, match="roles must alternate") as refused:
        template(TEMPLATES["llama-2"]).render([USER, USER])
    assert (refused.value.code, refused.value.kind, refused.value.field) == (400, "invalid_request", "messages")


class TestFiles:
    def test_templates_lie_where_transformers_looks(self, tmp_path: Path) -> None:
        config = tmp_path / "tokenizer_config.json"
        config.write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": None, "chat_template": "a"}))
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<p>", "bos_token": "other"}))
        assert read_chat_files(tmp_path) == ChatFiles({"default": "a"}, {"bos_token": "<s>", "pad_token": "<p>"})
        named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}, "x", {"name": 1}]
        config.write_text(json.dumps({"chat_template": named}))
        assert read_chat_files(tmp_path).templates == {"default": "d", "tool_use": "t"}
        (tmp_path / "chat_template.jinja").write_text("own")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("more")
        assert read_chat_files(tmp_path).templates == {"default": "own", "tool_use": "more"}

    @pytest.mark.parametrize("damage", ["[", "[]", '{"chat_template": 3}', "[" * 100_000, "\ud800"])
    def test_damaged_files_say_nothing(self, damage: str, tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_bytes(damage.encode("utf-8", "surrogatepass"))
        found = ChatTemplate(read_chat_files(tmp_path))
        assert not found.exists
        with pytest.raises(RequestInvalid, match="no chat template"):
            found.render([USER])

    def test_tools_have_a_template_of_their_own(self) -> None:
        both = ChatTemplate(ChatFiles({"default": "plain", "tool_use": "{{ tools|length }} tools"}, {}))
        assert both.render([USER]) == "plain"
        assert both.render([USER], tools=TOOLS) == "2 tools"


HOSTILE = {
    "a range": "{{ range(10**9)|list }}",
    "a range of ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a silent range of ranges": "{% set n = namespace(i=0) %}{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% set n.i = n.i + 1 %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 10**9 }}",
    "a long list": "{{ ([0] * 10**9)|length }}",
    "a text that doubles": "{% set n = namespace(t='x') %}{% for i in range(60) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(t=[1]) %}{% for i in range(60) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide format": "{{ '{:1000000000}'.format(1) }}",
    "a wide text": "{{ 'x'.ljust(10**9) }}",
    "a wide filter": "{{ 'x'|center(10**9) }}",
    "an indent": "{{ {'a': 1}|tojson(indent=10**9) }}",
    "a power": "{{ 9**(9**9) }}",
    "a power of a message": "{% set n = messages|length + 8 %}{{ n**(n**n) }}",
    "endless output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a macro that calls itself": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(40) }}",
    "a loop in itself": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "many copies": "{{ messages|map('string')|join|list|batch(1)|map('list')|list|length }}"
    "{% set n = namespace(t=['x' * 1000]) %}{% for i in range(30) %}{% set n.t = n.t + [n.t|join] %}{% endfor %}",
}

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{{ dict.__class__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__}'.format_map({'0': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ lipsum.__globals__ }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__name__ }}",
    "{{ config }}{{ caller.__code__ }}",
]


def test_a_template_without_end_is_ended() -> None:
    with pytest.raises(RequestInvalid, match="processor time"):
        template(HOSTILE["a silent range of ranges"]).render([USER], allowance=Allowance(seconds=0.2))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_ended(name: str) -> None:
    with pytest.raises(RequestInvalid, match=r"the bundle's chat template (takes|does)") as refused:
        template(HOSTILE[name]).render([USER], allowance=Allowance(seconds=0.2))
    assert (refused.value.code, refused.value.kind) == (500, FAILED)
    # And what comes next is rendered.
    assert template("{{ messages[0].content }}").render([USER]) == USER["content"]


@pytest.mark.parametrize("text", ESCAPES)
def test_a_hostile_template_gets_out_nowhere(text: str) -> None:
    try:
        rendered = template(text).render([USER])
    except RequestInvalid:
        return
    assert rendered in {"", "<bound"}, f"{text} gave {rendered[:80]}"


@pytest.mark.parametrize(
    "text",
    ["{% for %}", "{{ ", "{% if " + "(" * 500 + "1" + ")" * 500 + " %}{% endif %}", "{{ x|nofilter }}",
     "{% for a in b %}" * 30 + "{% endfor %}" * 30, "{% if a %}" * 400 + "{% endif %}" * 400,
     "{{ " + "+".join(["1"] * 20_000) + " }}", "{{ 'x' * 10**9 * 10**9 }}{{ }}"],
)  # fmt: skip
def test_one_that_cannot_be_read_says_so_at_every_request(text: str) -> None:
    found = template(text)
    assert found.exists
    assert found.fault is not None
    for _ in range(2):
        with pytest.raises(RequestInvalid, match="the bundle's chat template") as refused:
            found.render([USER])
        assert refused.value.kind == FAILED


def test_its_limits_are_no_longer_there_afterwards() -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_DATA)
    for text in (HOSTILE["a wide text"], HOSTILE["a silent range of ranges"], "fine"):
        with contextlib.suppress(RequestInvalid):
            template(text).render([USER], allowance=Allowance(seconds=0.2))
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_memory_is_bounded_indeed() -> None:
    script = (
        "from tests.contract.chat.test_template import HOSTILE, Allowance, template, USER\n"
        "import resource\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "template('x').render([USER]); before = peak()\n"
        "for text in HOSTILE.values():\n"
        "    try: template(text).render([USER], allowance=Allowance(seconds=0.2))\n"
        "    except Exception: pass\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80, "MiB: twice the bound, since what is let go need not be given back"
