"""The examples, run as a reader would: a real broker, an agent process that serves the tiny bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
import yaml

from edge_bundle import Client, SourceUnavailable, parse_broker
from tests.agent.telemetry.running import running_agent, scrape_until_ready
from tests.broker import Broker, find_mosquitto, free_port

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DEVICE = "box.7"
SECONDS = 120.0
CAPITAL = ("What is the capital of France?", "The capital of France is Paris.")
HELLO = ("Say hello.", "Hello, how are you today?")

needs_clients = pytest.mark.skipif(
    not all(map(shutil.which, ("mosquitto_rr", "mosquitto_sub", "mosquitto_passwd", "jq"))) or not find_mosquitto(),
    reason="mosquitto, its clients or jq are not installed",
)


@pytest.fixture(scope="module")
def broker(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Behind it, a device that is ready."""
    with running_agent(tmp_path_factory.mktemp("device"), tiny_bundle) as (made, page):
        scrape_until_ready(page, seconds=4 * SECONDS)
        yield made


def run(broker: Broker, *command: str, status: int = 0, **environment: str) -> str:
    """An example at the test's broker and device; what it prints."""
    there = {"EDGE_BROKER": broker.url, "EDGE_DEVICE": DEVICE, "PORT": str(broker.port), "DEVICE": DEVICE}
    ended = subprocess.run(
        command, env={**os.environ, **there, **environment}, cwd=ROOT, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout + (ended.stderr if status else "")


def python(broker: Broker, name: str, *arguments: str, status: int = 0, **environment: str) -> str:
    return run(broker, sys.executable, f"examples/python/{name}", *arguments, status=status, **environment)


@pytest.mark.broker
def test_python_asks(broker: Broker) -> None:
    question, answer = CAPITAL
    assert python(broker, "ask.py", question).strip() == answer
    assert "not now: " in python(broker, "ask.py", question, status=1, EDGE_BROKER=f"mqtt://127.0.0.1:{free_port()}")


@pytest.mark.broker
def test_python_streams_several_answers_at_once(broker: Broker) -> None:
    lines = python(broker, "stream_async.py", CAPITAL[0], HELLO[0]).splitlines()
    last = {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}
    assert last == {"1": repr(CAPITAL[1]), "2": repr(HELLO[1])}
    assert len(lines) > 2, "nothing was streamed"


@pytest.mark.broker
def test_python_gets_json_of_a_schema(broker: Broker) -> None:
    # What the tiny model makes of it is no sense, but of the shape.
    assert re.fullmatch(r"(not )?urgent: (pump|press|oven|unknown)\n", python(broker, "extract.py", "Pump 3 leaks"))


@pytest.mark.broker
@needs_clients
def test_shell_asks(broker: Broker) -> None:
    question, answer = CAPITAL
    frame = json.loads(run(broker, "examples/shell/ask.sh", question))
    assert (frame["text"].strip(), frame["finish_reason"]) == (answer, "stop")
    # Quotes and line ends of a question are its own.
    assert json.loads(run(broker, "examples/shell/ask.sh", 'Say "hello" \\ and\ngo'))["finish_reason"]


@pytest.mark.broker
@needs_clients
def test_shell_streams(broker: Broker) -> None:
    assert HELLO[1] in run(broker, "examples/shell/stream.sh", HELLO[0])
    told = run(broker, "examples/shell/stream.sh", HELLO[0], status=1, DEVICE="nobody", SECONDS_TO_WAIT="1")
    assert "no answer within 1 s" in told


def flow() -> dict[str, dict[str, Any]]:
    return {node["id"]: node for node in json.loads((EXAMPLES / "node-red" / "flow.json").read_text())}


def test_node_red_flow_is_wired_from_the_button_to_the_broker_and_back() -> None:
    nodes = flow()
    assert {target for node in nodes.values() for wire in node.get("wires", []) for target in wire} <= set(nodes)

    def following(name: str) -> list[str]:
        found = [nodes[name]["type"]]
        for wire in nodes[name].get("wires", []):
            for target in wire:
                found += following(target)
        return found

    starts = {node["type"]: following(name) for name, node in nodes.items() if node["type"] in ("inject", "mqtt in")}
    assert starts == {"inject": ["inject", "function", "mqtt out"], "mqtt in": ["mqtt in", "function", "debug"]}
    assert all(
        nodes[node["broker"]]["type"] == "mqtt-broker" for node in nodes.values() if "z" in node and "broker" in node
    )


@pytest.mark.broker
@needs_clients
def test_node_red_functions_ask_and_read_the_answer(broker: Broker) -> None:
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    functions = {node["name"]: node["func"] for node in flow().values() if node["type"] == "function"}

    def call(name: str, message: dict[str, Any]) -> dict[str, Any]:
        program = (
            f"const env = {{ get: () => {json.dumps(DEVICE)} }};"
            "const node = { error: (e) => { throw new Error(e) } };"
            f"const run = new Function('msg', 'env', 'node', {json.dumps(functions[name])});"
            f"console.log(JSON.stringify(run({json.dumps(message)}, env, node)))"
        )
        done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=SECONDS)
        read: dict[str, Any] = json.loads(done.stdout)
        return read

    asked = call("request", {"payload": CAPITAL[0]})
    reply = f"edge/v1/c/node-red/r/{DEVICE}/{asked['payload']['id']}"
    answered = subprocess.run(
        ["mosquitto_rr", "-V", "mqttv5", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-t", asked["topic"],
         "-e", reply, "-m", json.dumps(asked["payload"]), "-W", "60"],
        capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    read = call("answer", {"topic": reply, "payload": json.loads(answered.stdout)})
    assert (read["payload"], read["device"]) == (CAPITAL[1], DEVICE)


def template(text: str, **names: Any) -> str:
    """As Home Assistant fills it in: a sandbox, with ``to_json`` and ``now``."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    environment.filters["to_json"] = json.dumps
    environment.globals["now"] = datetime.now
    return environment.from_string(text).render(**names)


@pytest.mark.broker
@needs_clients
def test_home_assistant_asks_and_shows_the_answer(broker: Broker) -> None:
    package = yaml.safe_load((EXAMPLES / "home-assistant" / "package.yaml").read_text())
    (publish,) = package["script"]["ask_edge_device"]["sequence"]
    (automation,) = package["automation"]
    (trigger,), (condition,), (action,) = automation["triggers"], automation["conditions"], automation["actions"]
    assert (publish["action"], trigger["trigger"], action["action"]) == (
        "mqtt.publish", "mqtt", "persistent_notification.create",
    )  # fmt: skip
    assert (publish["data"]["qos"], publish["data"]["retain"], trigger["qos"]) == ("1", False, 1)

    request = template(publish["data"]["payload"], question=CAPITAL[0])
    reply = trigger["topic"].replace("kitchen-1", DEVICE).replace("+", json.loads(request)["id"])
    answered = subprocess.run(
        ["mosquitto_rr", "-V", "mqttv5", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-W", "60",
         "-t", publish["data"]["topic"].replace("kitchen-1", DEVICE), "-e", reply, "-m", request],
        capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    heard = {"payload_json": json.loads(answered.stdout)}
    assert template(condition["value_template"], trigger=heard) == "True"
    assert template(action["data"]["message"], trigger=heard).strip() == CAPITAL[1]
    failed = {"payload_json": {"error": {"type": "queue_full", "message": "too many"}}}
    assert template(action["data"]["message"], trigger=failed).strip() == "queue_full: too many"


@pytest.mark.broker
@needs_clients
def test_broker_that_was_prepared_lets_in_by_tls_and_rules(tmp_path: Path) -> None:
    made = subprocess.run(
        [str(EXAMPLES / "broker" / "prepare.sh"), "127.0.0.1", "box", "ann"],
        env={**os.environ, "DIRECTORY": str(tmp_path / "edge")},
        capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    secrets = dict(re.findall(r"^(box|ann): (\w+)$", made.stdout, re.MULTILINE))
    ports = {8883: free_port(), 8884: free_port()}
    config = (
        (ROOT / "systemd" / "mosquitto" / "edge.conf")
        .read_text()
        .replace("/etc/mosquitto/edge", str(tmp_path / "edge"))
    )
    config = config.replace("/var/lib/mosquitto", str(tmp_path))
    for usual, port in ports.items():
        config = config.replace(f"listener {usual}\n", f"listener {port} 127.0.0.1\n")
    (tmp_path / "mosquitto.conf").write_text(("user root\n" if os.geteuid() == 0 else "") + config)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(find_mosquitto()), "-c", str(tmp_path / "mosquitto.conf")], stdout=log, stderr=log
        )
    try:

        def publish(port: int, user: str, topic: str, *more: str) -> int:
            return subprocess.run(
                ["mosquitto_pub", "-V", "mqttv5", "-h", "127.0.0.1", "-p", str(ports[port]), "-q", "1", "-u", user,
                 "-P", secrets[user], "--cafile", str(tmp_path / "edge" / "ca.crt"), "-t", topic, "-m", "x", *more],
                capture_output=True, timeout=SECONDS, check=False,
            ).returncode  # fmt: skip

        while publish(8883, "box", "edge/v1/d/box/health") != 0:
            assert process.poll() is None, (tmp_path / "log").read_text()
        assert publish(8884, "ann", "edge/v1/d/box/generate/ann") == 0
        assert publish(8883, "ann", "edge/v1/d/box/generate/ann") != 0, "a program came in by the door of devices"
    finally:
        process.terminate()
        process.wait(SECONDS)


def test_broker_in_a_container_gets_the_files_that_are_here() -> None:
    folder = EXAMPLES / "broker"
    (service,) = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"].values()
    mounts = dict(each.split(":")[:2] for each in service["volumes"])
    assert (folder / "../../systemd/mosquitto/edge.conf").resolve().is_file()
    assert mounts["../../systemd/mosquitto/edge.conf"] == "/mosquitto/config/mosquitto.conf"
    configured = (ROOT / "systemd" / "mosquitto" / "edge.conf").read_text()
    assert f"persistence_location {mounts['data']}/" in configured
    assert f"certfile {mounts['./edge']}/server.crt" in configured
    assert {each.split(":")[0] for each in service["ports"]} == set(
        re.findall(r"^listener (\d+)$", configured, re.MULTILINE)
    )


@pytest.mark.broker
def test_broker_from_the_package_index_is_one(tmp_path: Path) -> None:
    text = (EXAMPLES / "broker" / "rumqttd.toml").read_text()
    assert tomllib.loads(text)["v5"]["1"]["listen"] == "127.0.0.1:1883"
    port = free_port()
    config = tmp_path / "rumqttd.toml"
    config.write_text(text.replace("1883", str(port)))
    process = subprocess.Popen([sys.executable, "-m", "iotcore", "--config", str(config)], stdout=subprocess.DEVNULL)
    try:
        client = None
        while client is None:
            assert process.poll() is None
            try:
                client = Client(parse_broker(f"mqtt://127.0.0.1:{port}"))
            except SourceUnavailable:
                continue
        client.close()
    finally:
        process.terminate()
        process.wait(SECONDS)


def test_every_example_is_in_the_table() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    programs = [path for pattern in ("*.py", "*.sh", "*.mjs", "flow.json") for path in EXAMPLES.rglob(pattern)]
    programs = [path for path in programs if "node_modules" not in path.parts and path.parent.name != "broker"]
    assert len(programs) >= 7
    assert not [path for path in programs if f"({path.relative_to(EXAMPLES)})" not in listed]
