"""The page of metrics: readable for the official client in both formats, named by the rules, bounded, and true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.telemetry.exposition import OPEN_METRICS, TEXT
from agent.telemetry.families import FAMILIES
from agent.telemetry.installs import InstallMeter
from agent.telemetry.llm import LlmMeter
from agent.telemetry.metrics import AgentState, page
from agent.telemetry.samples import Process, SystemSample
from agent.telemetry.system import SystemSampler
from contract.mqtt.device import BrokerState, EngineInfo, Health, Info, Limits
from contract.mqtt.faults import ReportedError
from contract.mqtt.reports import BundleState
from contract.reasons import BrokerReason, HealthReason, Reason
from tests.agent.telemetry.exposition_reader import check_histogram, official, parse
from tests.agent.telemetry.trees import BOARD, PC, plant

ENGINE = EngineInfo("batched", "it passed", 8, 4096, 1000, ["chat"], 0.5, "landlock")
BUNDLE = BundleState("toy", "1.0.0", "ab" * 32, 3)
INFO = Info(
    "box", "edge/v1", [], {"agent": "1.2.3", "python": "3.11.2", "onnxruntime": "1.31", "onnxruntime-genai": "0.18"},
    {"arch": "x86_64"}, Limits(1, 1, 1, 1, 1, 1, 1), BUNDLE, ENGINE,
)  # fmt: skip
STATE = AgentState(
    health=Health(True, [], 0, 0),
    info=INFO,
    phase="IDLE",
    installs=InstallMeter(),
    expiry={"root": 2_000_000_000, "timestamp": 1_900_000_000},
    revoked=False,
    broker=BrokerState("127.0.0.1:1883", "5", connected=True),
    connections=2,
    undelivered=1,
    throttle_level=0,
)


def state(**changes: Any) -> AgentState:
    return msgspec.structs.replace(STATE, **changes)


def values(text: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of ``name`` by the values of ``labels``."""
    _, samples = official(text)
    return {tuple(dict(found)[label] for label in labels): value for each, found, value in samples if each == name}


@pytest.mark.parametrize("tree", [PC, BOARD, {}])
def test_page_keeps_the_format_and_leaves_out_what_is_absent(tmp_path: Path, tree: dict[str, str]) -> None:
    plant(tmp_path, tree)
    system = SystemSampler(tmp_path, proc=tmp_path / "proc", sys=tmp_path / "sys").sample({7: "worker m@1"})
    meter = LlmMeter(5.0)
    meter.finish("stop", prompt_tokens=3, completion_tokens=2, first_token_seconds=0.2, total_seconds=500.0)
    families = parse(page("box", STATE, system, meter.sample(1, 2)))
    for name, family in families.items():
        if family[0] == "histogram":
            check_histogram(name, family)
    assert families["gen_ai_usage_output_tokens_total"][1] == {
        ("gen_ai_usage_output_tokens_total", (("device", "box"),)): 2
    }
    ended = families["edge_requests_total"][1]
    assert ended["edge_requests_total", (("device", "box"), ("outcome", "stop"))] == 1
    assert ended["edge_requests_total", (("device", "box"), ("outcome", "length"))] == 0
    assert ("edge_temperature_celsius" in families) == bool(tree)
    assert ("edge_swap_used_bytes" in families) == (tree is PC)
    assert ("edge_cpu_thermal_throttled" in families) == (tree is BOARD)
    assert not any(value == 0 for _, value in families.get("edge_temperature_celsius", ("", {}))[1].items())


@pytest.mark.parametrize("tree", [PC, BOARD, {}])
def test_official_client_reads_the_same_in_both_formats(tmp_path: Path, tree: dict[str, str]) -> None:
    plant(tmp_path, tree)
    system = SystemSampler(tmp_path, proc=tmp_path / "proc", sys=tmp_path / "sys").sample({7: "worker m@1"})
    llm = LlmMeter(5.0).sample(1, 2)
    plain_text = page("box", STATE, system, llm, TEXT)
    plain, found = official(plain_text)
    opened, open_found = official(page("box", STATE, system, llm, OPEN_METRICS), open_metrics=True)
    assert open_found == found
    assert {family.type for family in opened.values()} == {"gauge", "counter", "histogram", "info"}
    ours = {each.name: each for each in FAMILIES}
    for family in parse(plain_text):
        assert ours[family].kind in ("info", plain[family.removesuffix("_total")].type)
    assert all(family.documentation for family in (*plain.values(), *opened.values()))


OTHER_UNITS = re.compile(
    r"(percent|percentage|milliseconds|millis|ms|minutes|hours|days|kilobytes|megabytes|mib|kb|mb|mhz|fahrenheit|bits)"
)


def test_names_follow_the_conventions() -> None:
    """The rules of Prometheus' own linter, which is asked too where it is installed (tests/systemd)."""
    names = [each.name for each in FAMILIES]
    assert len(set(names)) == len(names)
    for each in FAMILIES:
        assert re.fullmatch(r"(edge|gen_ai)(_[a-z][a-z0-9]*)+", each.name)
        words = each.name.split("_")
        assert not any(OTHER_UNITS.fullmatch(word) for word in words), each.name
        assert not {"gauge", "counter", "histogram", "summary"} & set(words)
        assert (each.kind == "counter") == (words[-1] == "total")
        assert (each.kind == "info") == (words[-1] == "info")
        assert words[-1] not in ("count", "sum", "bucket")
        assert each.kind != "histogram" or words[-1] == "seconds"
        # A unit in the name stands at its end, before _total.
        last = words[-2] if words[-1] == "total" else words[-1]
        assert not {"seconds", "bytes", "ratio", "celsius", "hertz"} & set(words) - {last}
        assert each.help.endswith(".") and not each.help[0].islower()
        assert not set('"\\\n') & set(each.help)
        assert not {"pid", "le", "device", "instance", "job"} & set(each.labels)
        assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in each.labels)


def test_families_say_which_labels_their_samples_have(tmp_path: Path) -> None:
    for name, tree in (("pc", PC), ("board", BOARD)):
        plant(tmp_path / name, tree)
        sampler = SystemSampler(
            tmp_path, bundle_bytes=lambda: 5, proc=tmp_path / name / "proc", sys=tmp_path / name / "sys"
        )
        text = page("box", STATE, sampler.sample({7: "worker m@1"}), LlmMeter(5.0).sample(1, 2))
        _, samples = official(text)
        for each in FAMILIES:
            for sample, labels, _ in samples:
                if sample.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") == each.name:
                    assert set(dict(labels)) - {"le"} == {"device", *each.labels}


def test_names_from_outside_are_escaped() -> None:
    system = SystemSample(1.0, temperatures={'a"b\\c\nd': 1.0})
    text = page("box", STATE, system, LlmMeter(0.0).sample(0, 0))
    families = parse(text)
    ((_, labels),) = families["edge_temperature_celsius"][1]
    assert dict(labels)["sensor"] == r"a\"b\\c\nd"
    assert values(text, "edge_temperature_celsius", "sensor") == {('a"b\\c\nd',): 1.0}


def test_page_says_whether_the_device_is_ready_and_why_not() -> None:
    sample = LlmMeter(0.0).sample(0, 0)
    text = page("box", STATE, None, sample)
    assert values(text, "edge_ready") == {(): 1}
    assert values(text, "edge_health_reason", "reason") == {(reason.value,): 0 for reason in HealthReason}
    health = Health(False, ["no_model", "made_up"], 0, 0, ["revoked"])
    broker = BrokerState("b", "5", False, "away", [ReportedError(BrokerReason.CLIENT_ID_TAKEN, "another one")])
    text = page("box", state(health=health, broker=broker, throttle_level=2), None, sample)
    assert values(text, "edge_ready") == {(): 0}
    on = {reason for reason, value in values(text, "edge_health_reason", "reason").items() if value}
    assert on == {("no_model",), ("made_up",)}
    warnings = values(text, "edge_warning", "reason")
    assert warnings["revoked",] == 1
    assert warnings["client_id_taken",] == 1
    assert warnings["expired",] == warnings["message_too_large",] == 0
    assert values(text, "edge_broker_connected") == {(): 0}
    assert values(text, "edge_broker_connections_total") == {(): 2}
    assert values(text, "edge_broker_outbox_messages") == {(): 1}
    assert values(text, "edge_throttle_level") == {(): 2}


def test_every_reason_that_operators_are_told_of_is_known_before_it_holds() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "OPERATIONS.md").read_text()
    table = text.partition("### What `health` says")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {each.value for each in HealthReason}


def test_page_names_versions_bundle_and_engine() -> None:
    sample = LlmMeter(0.0).sample(0, 0)
    text = page("box", STATE, None, sample)
    assert values(text, "edge_agent_info", "version", "python", "onnxruntime", "onnxruntime_genai", "arch") == {
        ("1.2.3", "3.11.2", "1.31", "0.18", "x86_64"): 1
    }
    assert values(text, "edge_bundle_info", "name", "version", "digest", "security_epoch") == {
        ("toy", "1.0.0", "ab" * 32, "3"): 1
    }
    assert values(text, "edge_engine_info", "engine", "isolation", "reproducible") == {
        ("batched", "landlock", "true"): 1
    }
    assert values(text, "edge_engine_slots") == {(): 8}
    assert values(text, "edge_trust_metadata_expiry_timestamp_seconds", "role") == {
        ("root",): 2_000_000_000, ("timestamp",): 1_900_000_000,
    }  # fmt: skip
    without = msgspec.structs.replace(INFO, bundle=None, engine=None)
    text = page("box", state(info=without, expiry={}), None, sample)
    assert "edge_bundle_info" not in text
    assert "edge_engine" not in text
    assert "edge_trust_metadata" not in text


def test_page_counts_installations_by_reason_from_zero() -> None:
    installs = InstallMeter()
    sample = LlmMeter(0.0).sample(0, 0)
    text = page("box", state(installs=installs), None, sample)
    codes = {(reason.value,): 0.0 for reason in Reason}
    assert values(text, "edge_bundle_install_failures_total", "reason") == codes
    assert values(text, "edge_bundle_install_retries_total", "reason") == codes
    assert values(text, "edge_bundle_rollbacks_total", "reason") == codes
    installs.installed()
    installs.failed(Reason.CANARY_DRIFT)
    installs.failed(Reason.CANARY_DRIFT)
    installs.failed(None)
    installs.retried(Reason.NOT_JSON)
    installs.rolled_back(Reason.PROBATION_CRASHED)
    text = page("box", state(installs=installs, phase="FETCH", revoked=True), None, sample)
    assert values(text, "edge_bundle_installs_total") == {(): 1}
    failures = values(text, "edge_bundle_install_failures_total", "reason")
    assert {reason: count for reason, count in failures.items() if count} == {
        ("canary_drift",): 2, ("interrupted",): 1,
    }  # fmt: skip
    retries = values(text, "edge_bundle_install_retries_total", "reason")
    assert {reason: count for reason, count in retries.items() if count} == {("not_json",): 1}
    rollbacks = values(text, "edge_bundle_rollbacks_total", "reason")
    assert {reason: count for reason, count in rollbacks.items() if count} == {("probation_crashed",): 1}
    phases = values(text, "edge_install_phase", "phase")
    assert {phase for phase, value in phases.items() if value} == {("FETCH",)}
    assert len(phases) == 12
    assert values(text, "edge_active_bundle_revoked") == {(): 1}


def test_turned_away_requests_are_counted_from_zero() -> None:
    meter = LlmMeter(0.0)
    before = values(page("box", STATE, None, meter.sample(0, 0)), "edge_requests_rejected_total", "error")
    assert before["queue_full",] == 0
    meter.refuse("queue_full")
    after = values(page("box", STATE, None, meter.sample(0, 0)), "edge_requests_rejected_total", "error")
    assert after["queue_full",] == 1


def series(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {(name, labels) for name, labels, _ in official(text)[1]}


def test_a_long_life_adds_no_series() -> None:
    """Worker after worker, each with its own process id and bundle, and error types that only a worker knows."""
    meter = LlmMeter(0.0)
    meter.finish("stop")
    pages = []
    for turn in range(300):
        processes = [Process("agent", 1, 10, 5), Process(f"worker toy@1.0.{turn}", 100 + turn, 20, 15)]
        meter.finish(f"made_up_{turn}")
        meter.refuse(f"made_up_{turn}")
        pages.append(page("box", STATE, SystemSample(1.0, processes=processes), meter.sample(0, 0)))
    assert values(pages[-1], "edge_process_resident_memory_bytes", "process") == {("agent",): 10, ("worker",): 20}
    assert series(pages[-1]) == series(pages[100])
    assert sum(values(pages[-1], "edge_requests_total", "outcome").values()) == 301


def test_two_workers_of_a_swap_are_one_sum() -> None:
    processes = [Process("worker toy@1", 7, 10, 5), Process("worker toy@2", 8, 20)]
    text = page("box", STATE, SystemSample(1.0, processes=processes), LlmMeter(0.0).sample(0, 0))
    assert values(text, "edge_process_resident_memory_bytes", "process") == {("worker",): 30}
    assert values(text, "edge_process_proportional_memory_bytes", "process") == {("worker",): 5}


def test_shares_are_ratios(tmp_path: Path) -> None:
    plant(tmp_path, PC)
    sampler = SystemSampler(tmp_path, proc=tmp_path / "proc", sys=tmp_path / "sys")
    system = sampler.sample({})
    text = page("box", STATE, system, LlmMeter(0.0).sample(0, 0))
    assert values(text, "edge_pressure_stalled_ratio", "resource", "kind") == {
        ("memory", "some"): 0.015, ("memory", "full"): 0.0025,
    }  # fmt: skip
