"""The alert rules and the dashboard that travel with the agent: they ask for what the page of a running agent has, a
real Prometheus gets answers for all of it, and each alert fires when it should and not otherwise.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import pytest
import yaml

from agent.telemetry.families import FAMILIES
from agent.telemetry.llm import LlmMeter
from agent.telemetry.metrics import OUTCOMES, PHASES, REJECTIONS, page
from agent.telemetry.system import SystemSampler
from contract.bundle.layout import ROLES
from contract.reasons import BrokerReason, HealthReason, Reason
from tests.agent.telemetry.exposition_reader import official
from tests.agent.telemetry.running import MACHINES_OWN, SECONDS, running_agent, scrape_until_ready
from tests.agent.telemetry.test_metrics import STATE
from tests.agent.telemetry.trees import BOARD, PC, RASPBERRY_PI_5, plant
from tests.broker import free_port

FOLDER = Path(__file__).resolve().parents[2] / "systemd" / "monitoring"
RULES = FOLDER / "edge-agent.rules.yml"
DASHBOARD = json.loads((FOLDER / "edge-agent.dashboard.json").read_text())
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]

SCRAPED = {"job", "instance"}
"""Labels that every scrape adds."""

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")), reason="Prometheus is not installed"
)


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel.get("targets", [])]


PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ANNOTATIONS = [each["expr"] for each in DASHBOARD["annotations"]["list"] if "expr" in each]
PANEL_QUERIES = [expr for panel in PANELS for expr in queries(panel)] + ANNOTATIONS
QUERIES = [alert["expr"] for alert in ALERTS] + PANEL_QUERIES


def filled(expr: str, interval: str = "5m") -> str:
    """A panel's query with Grafana's variables in it, all devices chosen."""
    return expr.replace("$device", "(box.7|other)").replace("$__rate_interval", interval)


class Asked(NamedTuple):
    """A metric in a query, with the labels that are asked for and the values of its matchers."""

    name: str
    labels: set[str]
    matchers: list[tuple[str, str]]


def asked(expr: str) -> list[Asked]:
    nodes: list[Any] = []
    promql.walk(promql.parse(filled(expr)), lambda node: nodes.append(node) or True)
    selectors = [node for node in nodes if isinstance(node, promql.VectorSelector)]
    grouped = {
        label
        for node in nodes
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None
        for label in node.modifier.labels
    }
    found = []
    for selector in selectors:
        matchers = [(each.name, each.value) for each in selector.matchers.matchers if each.name != "__name__"]
        found.append(Asked(selector.name, {name for name, _ in matchers} | grouped, matchers))
    assert found, expr
    return found


Labels = dict[str, set[str]]


def labels_of(text: str) -> Labels:
    """The labels that the samples of each name have on a page."""
    found: Labels = {}
    for name, labels, _ in official(text)[1]:
        found.setdefault(name, set()).update(dict(labels))
    return found


def pages_of_machines(tmp_path: Path) -> list[str]:
    """Of machines with sensors, swap and pressure, which the one that tests may not have."""
    found = []
    for name, tree in (("pc", PC), ("board", BOARD), ("pi", RASPBERRY_PI_5)):
        plant(tmp_path / name, tree)
        sampler = SystemSampler(tmp_path, proc=tmp_path / name / "proc", sys=tmp_path / name / "sys")
        found.append(page("box", STATE, sampler.sample({7: "agent"}), LlmMeter(1.0).sample(0, 0)))
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[int]:
    """The port of the page of an agent that serves a bundle."""
    with running_agent(tmp_path_factory.mktemp("agent"), tiny_bundle) as (_, port):
        yield port


@pytest.mark.broker
def test_every_metric_and_label_that_is_asked_for_is_on_the_page_of_a_running_agent(
    running: int, tmp_path: Path
) -> None:
    real = labels_of(scrape_until_ready(running))
    others = [labels_of(text) for text in pages_of_machines(tmp_path)]
    depends_on_machine = {each.name for each in MACHINES_OWN}
    seen = set()
    for expr in QUERIES:
        for name, labels, _ in asked(expr):
            if name == "up":
                continue
            page_labels = real.get(name)
            if page_labels is None:
                assert name in depends_on_machine, f"{name} is not on the page"
                page_labels = next(each[name] for each in others if name in each)
            assert labels - SCRAPED <= page_labels, f"{name} has no {labels - SCRAPED - page_labels}"
            seen.add(re.sub("_bucket$", "", name))
    assert {each.name for each in FAMILIES} - seen <= {
        "edge_agent_start_time_seconds", "edge_boot_time_seconds", "edge_cpu_core_usage_ratio", "edge_load1",
        "edge_engine_context_tokens", "edge_swap_in_bytes_total", "edge_swap_out_bytes_total",
    }, "everything else is shown or watched"  # fmt: skip


KNOWN_VALUES = {
    ("edge_health_reason", "reason"): {each.value for each in HealthReason},
    ("edge_warning", "reason"): {each.value for each in (*Reason, *BrokerReason)},
    ("edge_bundle_install_failures_total", "reason"): {each.value for each in Reason},
    ("edge_bundle_install_retries_total", "reason"): {each.value for each in Reason},
    ("edge_bundle_rollbacks_total", "reason"): {each.value for each in Reason},
    ("edge_trust_metadata_expiry_timestamp_seconds", "role"): set(ROLES),
    ("edge_requests_rejected_total", "error"): set(REJECTIONS),
    ("edge_requests_total", "outcome"): set(OUTCOMES),
    ("edge_install_phase", "phase"): set(PHASES),
}


def test_every_value_that_is_asked_for_can_occur() -> None:
    looked = 0
    for expr in QUERIES:
        for name, _, matchers in asked(expr):
            for label, value in matchers:
                if label == "job":
                    assert value == "edge-agent"
                elif label != "device":
                    for part in value.split("|"):
                        assert any(re.fullmatch(part, known) for known in KNOWN_VALUES[name, label]), (name, part)
                        looked += 1
    assert looked >= 10


def test_dashboard_is_one_that_grafana_imports() -> None:
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD, "that is of one server"
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    label_values = re.fullmatch(r"label_values\((.*), (\w+)\)", variables["device"]["query"]["query"])
    assert label_values is not None
    assert asked(label_values[1])[0].name == "edge_ready"
    assert label_values[2] == "device"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)
    for expr in PANEL_QUERIES:
        assert set(re.findall(r"\$\w+", expr)) <= {"$device", "$__rate_interval"}
        assert all({"job", "device"} <= each.labels for each in asked(expr)), f"{expr} shows other jobs or devices"


def test_legends_name_labels_that_the_series_have() -> None:
    known = {each.name: set(each.labels) for each in FAMILIES}
    for target in (target for panel in PANELS for target in panel["targets"]):
        (name,) = {re.sub("_bucket$", "", each.name) for each in asked(target["expr"])}
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert label in known[name] | {"device"}, target
        if target["legendFormat"]:
            # A legend that leaves a label out gives two lines the same name.
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            summed = re.match(r"(sum|histogram_quantile)\b", target["expr"])
            assert summed or known[name] <= shown, target


def test_every_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert re.fullmatch(r"Edge([A-Z][a-z]+)+", alert["alert"])
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "description"}
        name = "instance" if alert["alert"] == "EdgeAgentDown" else "device"
        assert f"$labels.{name} " in alert["annotations"]["summary"], "it names the device"
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
        labels = set.union(*(each.labels | known_labels(each.name) for each in asked(alert["expr"])))
        assert used <= labels | SCRAPED | {"device"}


def test_operators_are_told_what_to_do_about_every_alert() -> None:
    text = (
        (FOLDER.parents[1] / "docs" / "OPERATIONS.md").read_text().partition("### Monitoring")[2].partition("\n### ")[0]
    )
    named = re.findall(r"`(Edge\w+|…\w+)`", text)
    names = {"EdgeTrustMetadata" + name[1:] if name.startswith("…") else name for name in named}
    assert names == {alert["alert"] for alert in ALERTS}


def known_labels(name: str) -> set[str]:
    return {label for each in FAMILIES if each.name == name for label in each.labels}


# -- with Prometheus' own tools ----------------------------------------------------------------------------------------


def promtool(*words: object, **more: Any) -> str:
    done = subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, timeout=SECONDS, check=False, **more
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.prometheus
@needs_prometheus
def test_promtool_finds_nothing_to_lint(tmp_path: Path) -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)
    for text in pages_of_machines(tmp_path):
        assert promtool("check", "metrics", input=text) == ""


@pytest.mark.broker
@pytest.mark.prometheus
@needs_prometheus
def test_promtool_finds_nothing_to_lint_on_the_page_of_a_running_agent(running: int) -> None:
    assert promtool("check", "metrics", input=scrape_until_ready(running)) == ""


def expiry(role: str) -> str:
    return f'edge_trust_metadata_expiry_timestamp_seconds{{role="{role}"}}'


def failures(reason: str) -> str:
    return f'edge_bundle_install_failures_total{{reason="{reason}"}}'


def retries(reason: str) -> str:
    return f'edge_bundle_install_retries_total{{reason="{reason}"}}'


def rollbacks(reason: str) -> str:
    return f'edge_bundle_rollbacks_total{{reason="{reason}"}}'


DAY = 86400
WELL = {
    "up{}": "1+0x600",
    "edge_ready{}": "1+0x600",
    **{f'edge_health_reason{{reason="{each.value}"}}': "0+0x600" for each in HealthReason},
    'edge_warning{reason="revoked"}': "0+0x600",
    'edge_warning{reason="trust_state_lost"}': "0+0x600",
    'edge_warning{reason="client_id_taken"}': "0+0x600",
    "edge_agent_start_time_seconds{}": "1000+0x600",
    "edge_broker_connected{}": "1+0x600",
    "edge_broker_connections_total{}": "1+0x600",
    "edge_active_bundle_revoked{}": "0+0x600",
    **{
        expiry(role): f"{days * DAY}+0x600"
        for role, days in (("root", 365), ("targets", 180), ("snapshot", 30), ("timestamp", 7))
    },
    **{failures(reason): "0+0x600" for reason in ("digest_mismatch", "canary_drift")},
    **{retries(reason): "0+0x600" for reason in ("digest_mismatch", "not_json", "source_unavailable")},
    **{rollbacks(reason): "0+0x600" for reason in ("canary_drift", "operator")},
    "edge_worker_crashes_total{}": "0+0x600",
    "edge_power_undervoltage{}": "0+0x600",
    "edge_disk_size_bytes{}": "32e9+0x600",
    "edge_disk_free_bytes{}": "16e9+0x600",
    'edge_requests_rejected_total{error="queue_full"}': "0+0x600",
    'edge_requests_rejected_total{error="no_model"}': "0+0x600",
}
"""A device that is well, a sample a minute for up to ten hours."""


class Case(NamedTuple):
    """What is other than on a device that is well, and which alerts then fire so many minutes later."""

    changed: dict[str, str]
    minutes: int
    fires: tuple[str, ...]


CASES = {
    "all is well": Case({}, 550, ()),
    "down": Case({"up{}": "0+0x600"}, 6, ("EdgeAgentDown",)),
    "down for a moment": Case({"up{}": "1+0x10 0+0x600"}, 14, ()),
    "restarting": Case(
        {"edge_agent_start_time_seconds{}": "1000+0x5 1300+0x5 1600+0x5 1900+0x600"}, 20, ("EdgeAgentRestarting",)
    ),
    "restarted": Case({"edge_agent_start_time_seconds{}": "1000+0x5 1300+0x600"}, 20, ()),
    "not ready": Case({"edge_ready{}": "0+0x600"}, 12, ("EdgeDeviceNotReady",)),
    "loading": Case({"edge_ready{}": "1+0x10 0+0x600"}, 19, ()),
    "no broker": Case({"edge_broker_connected{}": "0+0x600"}, 6, ("EdgeBrokerDisconnected",)),
    "broker restarted": Case({"edge_broker_connected{}": "1+0x10 0+0x600"}, 14, ()),
    "two of one name": Case({"edge_broker_connections_total{}": "1+1x600"}, 20, ("EdgeBrokerFlapping",)),
    "reconnected": Case({"edge_broker_connections_total{}": "1+0x10 2+0x10 3+0x600"}, 25, ()),
    "revoked": Case({"edge_active_bundle_revoked{}": "1+0x600"}, 1, ("EdgeRevokedBundleActive",)),
    "revoked, not active": Case({'edge_warning{reason="revoked"}': "1+0x600"}, 60, ()),
    "timestamp expires": Case({expiry("timestamp"): f"{2 * DAY}+0x600"}, 70, ("EdgeTrustMetadataExpiring",)),
    "snapshot expires": Case({expiry("snapshot"): f"{7 * DAY}+0x600"}, 70, ("EdgeTrustMetadataExpiring",)),
    "targets expires": Case({expiry("targets"): f"{30 * DAY}+0x600"}, 70, ("EdgeTrustMetadataExpiring",)),
    "root expires": Case({expiry("root"): f"{30 * DAY}+0x600"}, 70, ("EdgeTrustMetadataExpiring",)),
    "timestamp was just renewed": Case({expiry("timestamp"): f"{2 * DAY}+0x600"}, 58, ()),
    "timestamp is renewed daily": Case({expiry("timestamp"): f"{3 * DAY}+0x600"}, 300, ()),
    "expired": Case(
        {expiry("timestamp"): "1200+0x600"}, 70, ("EdgeTrustMetadataExpiring", "EdgeTrustMetadataExpired")
    ),
    "expired just now": Case({expiry("timestamp"): "3840+0x600"}, 70, ("EdgeTrustMetadataExpiring",)),
    "refused": Case({failures("digest_mismatch"): "0+0x5 1+0x600"}, 10, ("EdgeInstallFailed",)),
    "refused and mended": Case({failures("digest_mismatch"): "0+0x5 1+0x600"}, 90, ()),
    "first sample after a failure": Case({failures("digest_mismatch"): "1+0x600"}, 10, ()),
    "source away for a while": Case({retries("source_unavailable"): "0+0x5 1+0x1 2+0x600"}, 90, ()),
    "source away for an hour": Case({retries("source_unavailable"): "0+0.1x600"}, 75, ()),
    "source away": Case({retries("source_unavailable"): "0+0.1x600"}, 150, ("EdgeInstallStuck",)),
    "captive portal for a while": Case({retries("not_json"): "0+0x5 1+0x1 2+0x600"}, 90, ()),
    "wrong bytes for hours": Case({retries("digest_mismatch"): "0+0.1x600"}, 150, ("EdgeInstallStuck",)),
    "canary failed": Case(
        {failures("canary_drift"): "0+0x5 1+0x600",
         rollbacks("canary_drift"): "0+0x5 1+0x600"},
        10, ("EdgeInstallFailed", "EdgeBundleRolledBack"),
    ),
    "went back by hand": Case({rollbacks("operator"): "0+0x5 1+0x600"}, 10, ()),
    "crash loop": Case({"edge_worker_crashes_total{}": "0+1x600"}, 10, ("EdgeWorkerCrashLoop",)),
    "crashed once": Case({"edge_worker_crashes_total{}": "0+0x5 1+0x600"}, 10, ()),
    "disk nearly full": Case({"edge_disk_free_bytes{}": "3e9+0x600"}, 20, ("EdgeDiskNearlyFull",)),
    "disk full": Case({"edge_disk_free_bytes{}": "4096+0x600"}, 20, ("EdgeDiskNearlyFull", "EdgeDiskFull")),
    "disk full for a moment": Case({"edge_disk_free_bytes{}": "4096+0x600"}, 4, ()),
    "large disk": Case(
        {"edge_disk_free_bytes{}": "400e6+0x600"}, 20, ("EdgeDiskNearlyFull", "EdgeDiskFull")
    ),
    "small disk": Case(
        {"edge_disk_size_bytes{}": "500e6+0x600", "edge_disk_free_bytes{}": "60e6+0x600"}, 20, ("EdgeDiskFull",)
    ),
    "disk full while a bundle arrives": Case({"edge_disk_free_bytes{}": "16e9+0x5 2e9+0x600"}, 19, ()),
    "read only": Case({'edge_health_reason{reason="store_read_only"}': "1+0x600"}, 15, ("EdgeStoreReadOnly",)),
    "read only for a moment": Case({'edge_health_reason{reason="store_read_only"}': "1+0x600"}, 8, ()),
    "hot": Case({'edge_health_reason{reason="throttled_temperature"}': "1+0x600"}, 35, ("EdgeDeviceThrottled",)),
    "short of memory": Case({'edge_health_reason{reason="throttled_memory"}': "1+0x600"}, 35, ("EdgeDeviceThrottled",)),
    "weak supply": Case({"edge_power_undervoltage{}": "1+0x600"}, 6, ("EdgeUndervoltage",)),
    "supply that was weak for a moment": Case({"edge_power_undervoltage{}": "1+0x2 0+0x600"}, 6, ()),
    "hot for some minutes": Case({'edge_health_reason{reason="throttled_temperature"}': "1+0x600"}, 28, ()),
    "unloaded": Case({'edge_health_reason{reason="unloaded"}': "1+0x600"}, 60, ()),
    "queue full": Case({'edge_requests_rejected_total{error="queue_full"}': "0+3x600"}, 20, ("EdgeQueueFull",)),
    "queue full for some minutes": Case(
        {'edge_requests_rejected_total{error="queue_full"}': "0+0x5 0+3x600"}, 14, ()
    ),
    "queue full once": Case({'edge_requests_rejected_total{error="queue_full"}': "0+0x5 9+0x600"}, 20, ()),
    "turned away for want of a model": Case({'edge_requests_rejected_total{error="no_model"}': "0+3x600"}, 20, ()),
    "trust lost": Case({'edge_warning{reason="trust_state_lost"}': "1+0x600"}, 15, ("EdgeDeviceWarning",)),
    "two of one name, noticed": Case({'edge_warning{reason="client_id_taken"}': "1+0x600"}, 15, ("EdgeDeviceWarning",)),
    "warned for a moment": Case({'edge_warning{reason="trust_state_lost"}': "1+0x600"}, 8, ()),
}  # fmt: skip


def unit_test(name: str, case: Case) -> dict[str, Any]:
    """In the form that promtool reads: the alerts that fire, all of them."""
    assert case.changed.keys() <= WELL.keys()
    labels = 'job="edge-agent",instance="box:9464"'
    series = []
    for each, values in (WELL | case.changed).items():
        metric, _, rest = each.partition("{")
        device = "" if metric == "up" else ',device="box"'
        inner = rest.removesuffix("}")
        name = f"{metric}{{{labels}{device}{',' if inner else ''}{inner}}}"
        series.append({"series": name, "values": values.replace("x600", f"x{case.minutes}")})
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(case.fires)]
    return {
        "name": name,
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing",job="edge-agent"})',
                "eval_time": f"{case.minutes}m",
                "exp_samples": firing,
            }
        ],
    }


@pytest.mark.prometheus
@needs_prometheus
def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    fired = {alert for case in CASES.values() for alert in case.fires}
    assert fired == {alert["alert"] for alert in ALERTS}
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [unit_test(name, case) for name, case in CASES.items()],
    }
    file = tmp_path / "alerts.test.yml"
    file.write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", file)


@pytest.mark.prometheus
@needs_prometheus
def test_the_alert_of_a_device_that_is_not_ready_names_the_reasons(tmp_path: Path) -> None:
    case = Case({"edge_ready{}": "0+0x600", 'edge_health_reason{reason="no_model"}': "1+0x600"}, 12, ())
    document = unit_test("reasons", case)
    del document["promql_expr_test"]
    document["alert_rule_test"] = [
        {
            "eval_time": "12m",
            "alertname": "EdgeDeviceNotReady",
            "exp_alerts": [
                {
                    "exp_labels": {
                        "severity": "critical", "job": "edge-agent", "instance": "box:9464", "device": "box",
                    },
                    "exp_annotations": {
                        "summary": "box answers no prompts",
                        "description": "Reasons: no_model . On the device: edge-agent doctor.",
                    },
                }
            ],
        }
    ]  # fmt: skip
    file = tmp_path / "reasons.test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [document]}))
    promtool("test", "rules", file)


class Server:
    """A Prometheus of our own, with the shipped configuration and one device."""

    def __init__(self, directory: Path, device: int) -> None:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "200ms", "scrape_timeout": "1s"}
        config["rule_files"] = [str(RULES)]
        (scrape,) = config["scrape_configs"]
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{device}"]}]
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self._port = free_port()
        self._log = (directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address=127.0.0.1:{self._port}"],
            stderr=self._log,
        )  # fmt: skip

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return json.load(answer)["data"]

    def until(self, path: str, good: Any, **parameters: str) -> Any:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                found = self.get(path, **parameters)
            except OSError as error:
                found = error
            else:
                if good(found):
                    return found
            assert time.monotonic() < deadline, (path, parameters, found)
            time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        self._log.close()


@pytest.fixture(scope="module")
def server(running: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    scrape_until_ready(running)
    made = Server(tmp_path_factory.mktemp("prometheus"), running)
    yield made
    made.close()


@pytest.mark.broker
@pytest.mark.prometheus
@needs_prometheus
def test_a_real_prometheus_scrapes_the_agent_and_loads_every_rule(server: Server) -> None:
    targets = server.until("targets", lambda found: [each["health"] for each in found["activeTargets"]] == ["up"])
    (target,) = targets["activeTargets"]
    assert target["lastError"] == ""
    assert target["labels"]["job"] == "edge-agent"
    rules = server.until("rules", lambda found: all(each["health"] == "ok" for each in found["groups"][0]["rules"]))[
        "groups"
    ][0]["rules"]
    assert [each["name"] for each in rules] == [alert["alert"] for alert in ALERTS]
    assert {each["state"] for each in rules} == {"inactive"}, "all is well on a device that just serves"


@pytest.mark.broker
@pytest.mark.prometheus
@needs_prometheus
def test_a_real_prometheus_has_an_answer_for_every_panel(server: Server) -> None:
    depends_on_machine = {each.name for each in MACHINES_OWN}
    server.until("query", lambda found: found["result"], query='rate(edge_reply_frames_total{job="edge-agent"}[2s])')
    for expr in PANEL_QUERIES:
        query = filled(expr, "2s")
        if asked(expr)[0].name in depends_on_machine or "> 0" in expr or "== 1" in expr:
            # It may have nothing to say here and now, but has to be understood.
            assert server.get("query", query=query)["resultType"] == "vector"
        else:
            server.until("query", lambda found: found["result"], query=query)
