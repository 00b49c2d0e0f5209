"""What is wrong with a source is told before its weights are read: the kernel says how much of them anybody has."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BuildRefused, UsageError
from packager.build.pipeline import dry_run
from packager.build.plan import BuildPlan
from packager.sources.checkpoint import Checkpoint, Pending
from packager.sources.gguf import CONVERTER_REVISION
from packager.sources.opening import SourceOptions, open_source
from packager.sources.safetensors_header import read_header
from packager.sources.weights import list_tensors
from tests.packager.gguf_files import write_published_gguf
from tests.packager.page_cache import forget, pages_read
from tests.packager.published import PUBLISHED, write_layout
from tests.tiny import make_tokenizer

READ_AHEAD = 0.05
"""Of the weights' pages: their header, and what the kernel reads ahead of it."""

WIDE = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 4, "vocab_size": 448}


def write_wide(directory: Path, **changes: Any) -> Path:
    """A Llama of 250 MB whose weights are a hole in the file: there is nothing in it but a header."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    directory.mkdir()
    make_tokenizer().save_pretrained(directory)
    config = LlamaConfig(
        **{
            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True, **WIDE, **changes,
        }
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header, at = {}, 0
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            size = 4 * math.prod(tensor.shape)
            header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return directory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture
def source(wide: Path, tmp_path: Path) -> Path:
    """A copy to damage; a hole stays one."""
    target = tmp_path / "model"
    target.mkdir()
    for file in wide.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
    weights = wide / "model.safetensors"
    with (target / weights.name).open("wb") as file:
        file.write(len(read_header(weights)).to_bytes(8, "little") + read_header(weights))
        file.truncate(weights.stat().st_size)
    return target


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def refusal(
    source: Path, weights: Path, cache: Path, tmp_path: Path, judge: Callable[[Checkpoint], None] = lambda found: None,
    **options: Any,
) -> str:  # fmt: skip
    """Why ``source`` is refused, while nobody reads ``weights`` beyond their header."""
    forget(weights)
    with pytest.raises((BuildRefused, UsageError)) as caught:
        open_source(
            str(source), cache, tmp_path / "log", lambda done, total: None, SourceOptions(**options), on_headers=judge
        )
    assert pages_read(weights) < READ_AHEAD, f"{caught.value.message} was said after the weights were read"
    return caught.value.message


def change(source: Path, file: str, **values: Any) -> None:
    path = source / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_accepted_is_read(source: Path, cache: Path, tmp_path: Path) -> None:
    """Else the others would prove nothing. It is written here: a hole would be one that a download left."""
    weights = source / "model.safetensors"
    length = weights.stat().st_size
    with weights.open("r+b") as file:
        file.seek(8 + len(read_header(weights)))
        while (left := length - file.tell()) > 0:
            file.write(b"\x3c" * min(left, 1 << 20))
    forget(weights)
    open_source(str(source), cache, tmp_path / "log", lambda done, total: None)
    assert pages_read(weights) > 0.99


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architectures": ["MambaForCausalLM"]}, "cannot be built"),
    "no architecture": ({"architectures": None}, "names no architecture"),
    "a model that sees": ({"architectures": ["Mistral3ForConditionalGeneration"]}, "add --text-only"),
    "other shapes": ({"intermediate_size": 4096}, "mismatched: model.layers"),
    "rows for a smaller vocabulary": ({"vocab_size": 300}, "belongs to another model"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, "'fp8'"),
    "mxfp4": ({"quantization_config": {"quant_method": "mxfp4"}}, "'mxfp4'"),
    "compressed tensors": ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    "no method": ({"quantization_config": {"bits": 4}}, "quantised with"),
    "one scale a column": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": -1}}, "groups of 32 or 128",
    ),
    "no heads": ({"num_attention_heads": 0}, "cannot make a model of this config.json"),
    "a word for a number": ({"num_hidden_layers": "4"}, "cannot make a model of this config.json"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "states 1000000000 layers ('num_hidden_layers')"),
    "quantised by config.json alone": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "with gptq, and none is",
    ),
    "three bits": (
        {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 128}}, "to 3 bits, which the builder",
    ),
    "older keys of AWQ": (
        {"quantization_config": {"quant_method": "awq", "w_bit": 4, "q_group_size": 128}}, "rename w_bit to bits",
    ),
    "MLX": ({"quantization": {"group_size": 64, "bits": 4}}, "quantised for MLX"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name: str, source: Path, cache: Path, tmp_path: Path) -> None:
    values, words = CONFIGS[name]
    change(source, "config.json", **values)
    assert words in refusal(source, source / "model.safetensors", cache, tmp_path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2200000000\n"
FILES: dict[str, tuple[str, str | None, str]] = {
    "no tokenizer": ("tokenizer.json", None, "put tokenizer.json beside config.json"),
    "a tokenizer that is a pointer": ("tokenizer.json", POINTER, "git lfs pull"),
    "a tokenizer that is a web page": ("tokenizer.json", "<!DOCTYPE html><title>Sign in", "is a web page"),
    "a tokenizer cut short": ("tokenizer.json", '{"model": {', "is not JSON"),
    "a tokenizer of another kind": ("tokenizer.json", "{}", "tokenizer"),
    "no configuration": ("config.json", None, "has no config.json"),
    "an empty configuration": ("config.json", "", "is empty"),
    "a template that is none": ("chat_template.jinja", "{% for %}", "is no Jinja template"),
    "a template that refuses everybody": (
        "chat_template.jinja",
        "{{ raise_exception('no') }}",
        "refuses these messages",
    ),
    "a template without end": (
        "chat_template.jinja",
        "{% for a in range(60000) %}{% for b in range(60000) %}{% endfor %}{% endfor %}x",
        "processor time",
    ),
    "a template that is no text": ("chat_template.jinja", "x" * 300_000, "otherwise than transformers"),
    "quantised by the word of another file": ("quantize_config.json", '{"bits": 4}', "quantize_config.json alone"),
}


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        ("config.json", b"\xef\xbb\xbf{}", "begins with a byte order mark; save it as UTF-8 without one"),
        ("tokenizer_config.json", "{}".encode("utf-16"), "is not UTF-8 at byte 0; save it as UTF-8"),
        ("generation_config.json", b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        ("chat_template.jinja", b"{{ x }}\xff", "is not UTF-8 at byte 7"),
    ],
)
def test_files_that_an_editor_saved(
    file: str, data: bytes, words: str, source: Path, cache: Path, tmp_path: Path
) -> None:
    (source / file).write_bytes(data)
    message = refusal(source, source / "model.safetensors", cache, tmp_path)
    assert message.startswith(str(source / file))
    assert words in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model-q4.gguf", "as 'model-q4.gguf' only; name it: "),
        ("pytorch_model.pt", "as 'pytorch_model.pt' only; fetch model.safetensors as well"),
        ("tf_model.h5", "as 'tf_model.h5' only; fetch model.safetensors as well"),
    ],
)
def test_weights_in_a_file_of_another_kind(name: str, words: str, source: Path, cache: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").rename(source / name)
    assert words in refusal(source, source / name, cache, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_small_files(name: str, source: Path, cache: Path, tmp_path: Path) -> None:
    file, text, words = FILES[name]
    (source / file).unlink(missing_ok=True)
    if text is not None:
        (source / file).write_text(text)
    assert words in refusal(source, source / "model.safetensors", cache, tmp_path)


def test_weights_that_are_another_files_stand_in(source: Path, cache: Path, tmp_path: Path) -> None:
    weights = source / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size - 4)
    assert f"has {size - 4} bytes" in refusal(source, weights, cache, tmp_path)
    weights.write_text(POINTER)
    with pytest.raises(BuildRefused, match=r"pointer of Git LFS .*; run `git lfs pull` in"):
        open_source(str(source), cache, tmp_path / "log", lambda done, total: None)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_that_were_copied_without_their_files(
    name: str, source: Path, wide: Path, cache: Path, tmp_path: Path
) -> None:
    (source / name).unlink()
    (source / name).symlink_to("../../blobs/4d7a")
    words = f"{name} is a link to a file that is not there; copy what links lead to"
    assert words in refusal(source, wide / "model.safetensors", cache, tmp_path)


TYPES: dict[str, tuple[str, Any, str]] = {
    "a number for a template": (
        "tokenizer_config.json", {"chat_template": 7},
        "'chat_template' is a whole number where a text, an object, a list or null belongs; correct it there",
    ),
    "a list of numbers for templates": (
        "tokenizer_config.json", {"chat_template": [1]}, "'chat_template[0]' is a whole number where an object belongs",
    ),
    "a template without its text": (
        "tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "'chat_template[0]' lacks 'template'",
    ),
    "a length in quotation marks": (
        "tokenizer_config.json", {"model_max_length": "512"}, "'model_max_length' is a text where a number or null",
    ),
    "a number for a token": ("tokenizer_config.json", {"eos_token": 2}, "'eos_token' is a whole number where a text"),
    "an added token without text": (
        "tokenizer_config.json", {"added_tokens_decoder": {"0": {}}}, "'added_tokens_decoder[…]' lacks 'content'",
    ),
    "a list for a tokenizer": ("tokenizer_config.json", [], "is not a JSON object"),
    "a text for a list of tokens": (
        "special_tokens_map.json", {"additional_special_tokens": "<a>"}, "'additional_special_tokens' is a text where",
    ),
    "a text for an id": ("added_tokens.json", {"<a>": "5"}, "'[…]' is a text where a whole number belongs"),
    "words for end tokens": (
        "generation_config.json", {"eos_token_id": ["</s>"]}, "'eos_token_id[0]' is a text where a whole number",
    ),
    "half a token": ("generation_config.json", {"max_new_tokens": 1.5}, "'max_new_tokens' is a number where a whole"),
    "a list of settings": ("generation_config.json", [1], "is not a JSON object"),
    "a word for an end token": ("config.json", {"eos_token_id": "</s>"}, "'eos_token_id' is a text where a whole"),
    "a word for how it is quantised": ("config.json", {"quantization_config": "gptq"}, "'quantization_config' is a"),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_fields_of_another_type(name: str, source: Path, cache: Path, tmp_path: Path) -> None:
    file, document, words = TYPES[name]
    before = json.loads((source / file).read_text()) if (source / file).exists() and isinstance(document, dict) else {}
    (source / file).write_text(json.dumps({**before, **document} if isinstance(document, dict) else document))
    message = refusal(source, source / "model.safetensors", cache, tmp_path)
    assert f"{source / file}" in message
    assert words in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": "8"}, "'r' is a text where a whole number or null belongs"),
        ({"target_modules": {"q_proj": 1}}, "'target_modules' is an object where"),
        ({"rank_pattern": []}, "'rank_pattern' is a list where"),
        ({"base_model_name_or_path": ["a/b"]}, "'base_model_name_or_path' is a list where"),
    ],
)
def test_fields_of_an_adapter(fields: dict[str, Any], words: str, source: Path, cache: Path, tmp_path: Path) -> None:
    from tests.packager.sources.test_sources import make_adapter

    adapter = make_adapter(tmp_path / "adapter")
    change(adapter, "adapter_config.json", **fields)
    message = refusal(source, source / "model.safetensors", cache, tmp_path, adapter=adapter)
    assert f"adapter_config.json: {words}" in message


def test_a_tokenizer_that_transformers_cannot_read(source: Path, cache: Path, tmp_path: Path) -> None:
    change(source, "tokenizer_config.json", tokenizer_class="NoSuchTokenizer")
    (source / "tokenizer.json").write_text('{"model": {"type": "Nonsense", "vocab": {}}}')
    words = "transformers cannot read the tokenizer: "
    assert words in refusal(source, source / "model.safetensors", cache, tmp_path)


def test_generation_settings_that_no_request_has(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").write_text('{"do_sample": true, "temperature": -1.0}')
    forget(source / "model.safetensors")
    with pytest.raises(BuildRefused, match=r"generation_config.json: .*temperature"):
        dry_run(BuildPlan(str(source), "wide", "1.0.0"), tmp_path / "out", cache=tmp_path / "cache")
    assert pages_read(source / "model.safetensors") < READ_AHEAD


def test_shards_of_an_index_alone(source: Path, cache: Path, tmp_path: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    (source / "model.safetensors").rename(source / shard)
    index = {"metadata": {}, "weight_map": {"a": shard, "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(source, source / shard, cache, tmp_path)
    assert "lacks 1 of 2 weight files, first 'model-00002-of-00002.safetensors'; fetch them" in message
    (source / shard).rename(source / f"{shard}.incomplete")
    (source / "model.safetensors.index.json").unlink()
    with pytest.raises(BuildRefused, match="was not fetched to its end"):
        open_source(str(source), cache, tmp_path / "log", lambda done, total: None)


SHARD = "model-00001-of-00001.safetensors"
INDEXES: dict[str, tuple[Any, str]] = {
    "no metadata": ({"weight_map": {"a": SHARD}}, 'add "metadata": {} to it'),
    "metadata of another kind": ({"metadata": [], "weight_map": {"a": SHARD}}, "has no 'metadata' object"),
    "no map": ({"metadata": {}}, "has no 'weight_map'"),
    "a map of another kind": ({"metadata": {}, "weight_map": [SHARD]}, "has no 'weight_map'"),
    "an empty map": ({"metadata": {}, "weight_map": {}}, "has an empty 'weight_map'"),
    "a list": ([SHARD], "has no 'weight_map'"),
    "a number for a file": ({"metadata": {}, "weight_map": {"a": 1}}, "names no file for 'a', but '1'"),
    "a file elsewhere": ({"metadata": {}, "weight_map": {"a": f"../{SHARD}"}}, "not the name of a file beside it"),
    "an absolute path": ({"metadata": {}, "weight_map": {"a": f"/{SHARD}"}}, "not the name of a file beside it"),
    "the directory": ({"metadata": {}, "weight_map": {"a": ".."}}, "is not a .safetensors file"),
    "a path of Windows": ({"metadata": {}, "weight_map": {"a": f"x\\{SHARD}"}}, "not the name of a file beside it"),
    "another kind of file": ({"metadata": {}, "weight_map": {"a": "config.json"}}, "is not a .safetensors file"),
    "a file that is not there": (
        {"metadata": {}, "weight_map": {"a": SHARD, "b": "more.safetensors"}}, "lacks 1 of 2 weight files",
    ),
    "a weight that is not there": ({"metadata": {}, "weight_map": {"a": SHARD}}, f"states that 'a' is in {SHARD}"),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEXES)
def test_indexes(name: str, source: Path, cache: Path, tmp_path: Path) -> None:
    document, words = INDEXES[name]
    (source / "model.safetensors").rename(source / SHARD)
    (source / "model.safetensors.index.json").write_text(json.dumps(document))
    assert words in refusal(source, source / SHARD, cache, tmp_path)


def test_an_index_of_the_whole_file_is_true_too(source: Path, cache: Path, tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.another.weight": "model.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    words = "states that 'model.another.weight' is in model.safetensors, and it is not"
    assert words in refusal(source, source / "model.safetensors", cache, tmp_path)


def test_a_template_of_the_operators_own(source: Path, cache: Path, tmp_path: Path) -> None:
    broken = {"chat_template": "{{ raise_exception('never') }}"}
    assert "never" in refusal(source, source / "model.safetensors", cache, tmp_path, **broken)


def test_an_adapter_of_another_base(source: Path, cache: Path, tmp_path: Path) -> None:
    from tests.packager.sources.test_sources import make_adapter

    adapter = make_adapter(tmp_path / "adapter")
    assert "belongs to another base" in refusal(source, source / "model.safetensors", cache, tmp_path, adapter=adapter)


def test_memory_and_quantizer_are_judged_from_headers(tmp_path: Path) -> None:
    """A model of 1.6 TB, which nobody could read in a test."""
    source = write_wide(tmp_path / "model", hidden_size=32768, intermediate_size=131072, num_hidden_layers=24)
    weights = source / "model.safetensors"
    assert weights.stat().st_size > 1 << 40
    forget(weights)
    with pytest.raises(BuildRefused, match=r"needs about [\d.]+ GiB of memory.* are free; build on a larger machine"):
        dry_run(BuildPlan(str(source), "wide", "1.0.0"), tmp_path / "out", cache=tmp_path / "cache")
    change(source, "config.json", quantization_config={"quant_method": "gptq", "bits": 8, "group_size": 128})
    with pytest.raises(UsageError, match="--precision int8 --block-size 128"):
        dry_run(BuildPlan(str(source), "wide", "1.0.0"), tmp_path / "out", cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "checkpoints").exists()


class TestPickled:
    @pytest.fixture
    def pickled(self, wide: Path, tmp_path: Path) -> Path:
        import torch

        source = tmp_path / "pickled"
        shutil.copytree(wide, source, ignore=shutil.ignore_patterns("*.safetensors"))
        # As many tensors as there are layers: with fewer the configuration is refused first.
        tensors = {"x": torch.zeros(6 << 20), **{f"x{number}": torch.zeros(1) for number in range(3)}}
        torch.save(tensors, source / "pytorch_model.bin")
        return source

    def test_names_and_shapes(self, wide: Path, pickled: Path, cache: Path, tmp_path: Path) -> None:
        import torch

        tensors = {
            tensor.name: torch.zeros(tensor.shape, dtype=torch.float16)
            for tensor in list_tensors(wide / "model.safetensors")
        }
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(8, 512)
        torch.save(tensors, pickled / "pytorch_model.bin")
        message = refusal(pickled, pickled / "pytorch_model.bin", cache, tmp_path)
        assert "1 missing in the files: model.norm.weight" in message
        assert "model.layers.0.mlp.up_proj.weight is [8, 512] in the files and [8192, 512] in the model" in message
        assert not list((cache / "checkpoints").glob("*unpickled*"))

    def test_indexes(self, pickled: Path, cache: Path, tmp_path: Path) -> None:
        index = pickled / "pytorch_model.bin.index.json"
        for weight_map, words in (
            ({}, "has an empty 'weight_map'"),
            ({"x": "../pytorch_model.bin"}, "is not the name of a file beside it"),
            ({"x": "pytorch_model-2.bin"}, "lacks 1 of 1 weight files, first 'pytorch_model-2.bin'"),
            ({"x": "tokenizer.json"}, "is not a .bin file"),
            ({"y": "pytorch_model.bin"}, "states that 'y' is in pytorch_model.bin, and it is not"),
        ):
            index.write_text(json.dumps({"weight_map": weight_map}))
            assert words in refusal(pickled, pickled / "pytorch_model.bin", cache, tmp_path)

    @pytest.mark.parametrize("name", ["no tokenizer", "a template that refuses everybody"])
    def test_small_files(self, name: str, pickled: Path, cache: Path, tmp_path: Path) -> None:
        file, text, words = FILES[name]
        (pickled / file).unlink(missing_ok=True)
        if text is not None:
            (pickled / file).write_text(text)
        assert words in refusal(pickled, pickled / "pytorch_model.bin", cache, tmp_path)

    def test_memory(self, pickled: Path, cache: Path, tmp_path: Path) -> None:
        seen: list[Checkpoint] = []

        def judge(found: Checkpoint) -> None:
            seen.append(found)
            raise BuildRefused(f"{found.parameters >> 20} million weights are too many")

        weights = pickled / "pytorch_model.bin"
        assert "6 million" in refusal(pickled, weights, cache, tmp_path, judge)
        assert seen[0].pending.disk_bytes == weights.stat().st_size
        assert seen[0].pending.memory_bytes > weights.stat().st_size


class TestGguf:
    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[..., Path]:
        """Write a GGUF file as ``fields`` say, and behind it a hole of a gigabyte that belongs to no tensor."""

        def make(kind: str = "llama", template: str | None = None, **fields: Any) -> Path:
            import msgspec

            layout = PUBLISHED["llama-3"]
            if template is not None:
                layout = msgspec.structs.replace(layout, template=template)
            source = write_layout(tmp_path / "source", layout)
            write_published_gguf(tmp_path / "model.gguf", source, kind, **fields)
            os.truncate(tmp_path / "model.gguf", 1 << 30)
            return tmp_path / "model.gguf"

        return make

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"attention.temperature_scale": 0.1}, "not known here: llama.attention.temperature_scale"),
            ({"feed_forward_length": 128}, "mismatched: model.layers.{0-1}.mlp."),
            ({"template": "{% for %}"}, "renders no conversation"),
        ],
    )
    def test_headers(
        self, write: Callable[..., Path], given: dict[str, Any], words: str, cache: Path, tmp_path: Path
    ) -> None:
        path = write(**given)
        assert words in refusal(path, path, cache, tmp_path)

    def test_memory_is_judged_before_it_is_hashed(
        self, write: Callable[..., Path], cache: Path, tmp_path: Path
    ) -> None:
        seen: list[Checkpoint] = []

        def judge(found: Checkpoint) -> None:
            seen.append(found)
            raise BuildRefused("there is no memory for it")

        path = write(license="apache-2.0")
        assert "no memory" in refusal(path, path, cache, tmp_path, judge)
        found = seen[0]
        assert (found.architecture, found.license_spdx) == ("LlamaForCausalLM", "Apache-2.0")
        assert found.parameters > 50_000
        assert found.chat_template is not None
        # What dequantising takes belongs to it, until that is done.
        size = 4 * found.parameters
        assert found.pending.disk_bytes == size
        assert found.pending.memory_bytes > size
        made = (
            tmp_path
            / "kept"
            / "checkpoints"
            / f"{'0' * 32}-{importlib.metadata.version('transformers')}-{CONVERTER_REVISION}"
        )
        made.mkdir(parents=True)
        with (made / "model.safetensors").open("wb") as file:
            file.truncate(size)
        refusal(path, path, tmp_path / "kept", tmp_path, judge)
        assert seen[1].pending == Pending()

    def test_cut_short(self, write: Callable[..., Path], cache: Path, tmp_path: Path) -> None:
        path = write()
        os.truncate(path, 100_000)
        with pytest.raises(BuildRefused, match="is not whole, or damaged; fetch it again"):
            open_source(str(path), cache, tmp_path / "log", lambda done, total: None)

    @pytest.mark.parametrize(
        ("head", "words"),
        [
            (b"tjgg" + bytes(60), "older than GGUF"),
            (POINTER.encode(), "git lfs pull"),
            (b"<html>", "is a web page"),
            (b"", "is empty"),
            (b"PK\3\4" + bytes(60), "is not a GGUF file"),
            (b"GGUF\3\0\0\0" + bytes(64), "names no architecture"),
        ],
    )
    def test_what_is_none(self, head: bytes, words: str, cache: Path, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(head)
        with pytest.raises(BuildRefused, match=words):
            open_source(str(path), cache, tmp_path / "log", lambda done, total: None)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"general.architecture": "clip"}, "the part of a model that sees"),
            ({"general.architecture": "llama", "general.type": "adapter"}, "a LoRA adapter"),
            ({"general.architecture": "llama", "general.type": "imatrix"}, "how much each weight matters"),
        ],
    )
    def test_what_is_no_model(self, fields: dict[str, str], words: str, cache: Path, tmp_path: Path) -> None:
        import gguf

        path = tmp_path / "part.gguf"
        writer = gguf.GGUFWriter(str(path), fields["general.architecture"])
        if "general.type" in fields:
            writer.add_type(fields["general.type"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(BuildRefused, match=words):
            open_source(str(path), cache, tmp_path / "log", lambda done, total: None)
