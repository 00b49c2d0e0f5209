"""One contender in a process of its own: loads the model, then obeys one JSON command a line on its standard input.

    python benchmarks/peer.py NAME MODEL THREADS [LENGTH TEXT]

All contenders are driven in the same way: ``submit`` a prompt, ``pump`` until every stream has its tokens. Nothing but
the contender's own package is imported, so that its memory is its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

PR_SET_PDEATHSIG = 1
TOKENS = 64
"""Decoded by every stream."""

STREAMS = 8
"""At once, at the most."""

STAGGER = 4
"""A stream arrives whenever the first one has made so many tokens more."""

GAP_STREAMS, GAP_PROMPT = 4, 1024
IDLE_SECONDS = 2.0
LENGTH = 4096
"""Tokens of context that llama.cpp is given for each stream unless it is said; ours takes what memory allows then,
OGA's Generators are sized by request."""

STEADY = "decode 1, after its first token [tok/s]"
WORDS = "quick brown fox jumps over lazy dog while seven grey birds sing about rain and old stone bridges"


class Batched:
    """Our engine through its stepping interface. ``mode`` says what it promises on this processor."""

    reproducible = False
    speculation: Literal["on", "off"] = "off"
    """What is drafted is another measure: random weights and lists of words repeat themselves."""

    def __init__(self, model: str, threads: int, length: int = 0) -> None:
        from agent.engine.engine_selection import open_engine
        from agent.host.huge_pages import gather_beside

        self._engine = open_engine(
            Path(model),
            engine="batched",
            threads=threads,
            max_bytes=room_for_all(Path(model), length) if length else 0,
            reproducible=self.reproducible,
            speculation=self.speculation,
            slots=STREAMS,
        )
        if (gathering := gather_beside()) is not None:  # as a worker does
            gathering.join()
        facts = self._engine.facts
        self.mode = f"{facts.slots} slots of {facts.context_length} tokens; {facts.independence.why}"

    def submit(self, number: int, prompt: str, tokens: int) -> None:
        from agent.engine.interface import Generation

        # one client: what was asked before may be remembered, as for the others
        self._engine.admit(Generation(number, "bench", prompt=prompt, max_tokens=tokens, min_tokens=tokens))

    def idle(self) -> bool:
        return not self._engine.busy

    def pump(self) -> list[int]:
        return [event.request for event in self._engine.step() if type(event).__name__ == "TokenEvent"]


def room_for_all(model: Path, length: int) -> int:
    """Bytes of which our engine makes eight slots of so many tokens, or of the fewest that it makes."""
    from agent.engine.batched.graph import read_decoder
    from agent.engine.config import read_config
    from contract.bundle.device_plan import GIVEN_PREFIX_SHARE, GOOD_LENGTH, MAX_SLOTS

    token = read_decoder(model, read_config(model)).kv_bytes_per_token
    return int((MAX_SLOTS * max(length, GOOD_LENGTH) + 1) * token / (1 - GIVEN_PREFIX_SHARE))


class Reproducible(Batched):
    """The same where every answer has to be the same bit for bit, whatever else runs."""

    reproducible = True


class Speculating(Batched):
    """The same with prompt lookup, whatever the kernels here make of it."""

    speculation = "on"


class Generators:
    """onnxruntime-genai's Generator, one for each stream, in turns."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime_genai as og

        self._og = og
        self._model = og.Model(overlaid(og, model, threads))
        self._tokenizer = og.Tokenizer(self._model)
        self._running: dict[int, Any] = {}

    def submit(self, number: int, prompt: str, tokens: int) -> None:
        ids = self._tokenizer.encode(prompt)
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(ids) + tokens, min_length=len(ids) + tokens, do_sample=False)
        generator = self._og.Generator(self._model, parameters)
        generator.append_tokens(ids)
        self._running[number] = (generator, self._tokenizer.create_stream())

    def idle(self) -> bool:
        return not self._running

    def pump(self) -> list[int]:
        made = []
        for number, (generator, stream) in list(self._running.items()):
            generator.generate_next_token()
            stream.decode(generator.get_next_tokens()[0])
            made.append(number)
            if generator.is_done():
                del self._running[number]
        return made


class StaticBatches:
    """onnxruntime-genai's Engine: a request that arrives waits until the batch before it is done."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime_genai as og

        self._og = og
        self._model = og.Model(overlaid(og, model, threads))
        self._tokenizer = og.Tokenizer(self._model)
        self._engine = og.Engine(self._model)
        self._buffer = self._engine.create_event_buffer(64)
        self._flags = og.EngineEventFlags
        self._running: list[tuple[int, Any, Any]] = []

    def submit(self, number: int, prompt: str, tokens: int) -> None:
        ids = self._tokenizer.encode(prompt)
        options = self._og.RequestOptions()
        options.set_max_session_tokens(len(ids) + tokens)
        request = self._engine.create_request(options=options)
        turn = self._og.TurnOptions(request)
        turn.set_do_sample(False)
        turn.set_min_generated_tokens(tokens)
        turn.set_max_generated_tokens(tokens)
        request.begin_turn(ids, turn)
        self._running.append((number, request, self._tokenizer.create_stream()))

    def idle(self) -> bool:
        return not self._running

    def pump(self) -> list[int]:
        made = []
        for event in self._engine.run(self._buffer):
            for running in list(self._running):
                number, request, stream = running
                if event.request is request:
                    if event.flags & self._flags.TOKEN:
                        stream.decode(event.token)
                        made.append(number)
                    if event.flags & self._flags.TURN_FINISHED:
                        request.close()
                        self._running.remove(running)
        return made


class LlamaCpp:
    """llama.cpp's server inside its Python package, without HTTP; ``model`` is the GGUF file."""

    def __init__(self, model: str, threads: int, length: int = LENGTH) -> None:
        import importlib

        xllamacpp = importlib.import_module("xllamacpp")  # only in its own environment

        wanted = xllamacpp.CommonParams()
        wanted.model.path = model
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
        wanted.n_parallel = STREAMS
        wanted.n_ctx = STREAMS * length
        wanted.n_gpu_layers = 0
        self._server = xllamacpp.Server(wanted)
        self._made: queue.Queue[int] = queue.Queue()
        self._asking: list[threading.Thread] = []

    def submit(self, number: int, prompt: str, tokens: int) -> None:
        asked = {
            "prompt": prompt, "n_predict": tokens, "ignore_eos": True, "temperature": 0, "stream": True,
            "max_tokens": tokens, "cache_prompt": True,
        }  # fmt: skip

        def heard(piece: Any) -> None:
            # The last piece only says why it ended; counted as a token it would run over into the next measure.
            if "choices" not in piece:
                raise RuntimeError(f"llama.cpp refused a request: {piece}")
            if piece["choices"][0]["finish_reason"] is None:
                self._made.put(number)

        asking = threading.Thread(target=self._server.handle_completions, args=(asked, heard), daemon=True)
        asking.start()
        self._asking.append(asking)

    def idle(self) -> bool:
        for asking in self._asking:
            asking.join(timeout=10)
        left = any(asking.is_alive() for asking in self._asking)
        self._asking.clear()
        return not left and self._made.empty()

    def pump(self) -> list[int]:
        made = [self._made.get()]  # whoever asks has the patience
        while not self._made.empty():
            made.append(self._made.get())
        return made


PEERS: dict[str, Any] = {
    "batched": Batched,
    "reproducible": Reproducible,
    "speculating": Speculating,
    "oga generator": Generators,
    "oga engine": StaticBatches,
    "llama.cpp": LlamaCpp,
}


def overlaid(og: Any, model: str, threads: int) -> Any:
    """The threads and the spinning that our engine has."""
    config = og.Config(model)
    options = {"intra_op_num_threads": threads, "session.intra_op.spin_duration_us": "50"}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return config


def letters_of(tokens: int, seed: int) -> str:
    """The same for a vocabulary of single letters, which random weights come with."""
    return str(seed) + "".join(chr(97 + (seed * 7 + index * (seed % 5 + 1)) % 26) for index in range(tokens))


def prompt_of(tokens: int, seed: int) -> str:
    """About so many tokens, another text for another seed: common English words are one each."""
    words = WORDS.split()
    return f"{seed} " + " ".join(words[(seed * 7 + index * (seed % 5 + 1)) % len(words)] for index in range(tokens))


class Measures:
    """What is measured; every prompt is new unless it says otherwise."""

    def __init__(self, peer: Any, text: Callable[[int, int], str] = prompt_of) -> None:
        self._peer = peer
        self._text = text
        self._seed = 100

    def fresh(self, tokens: int) -> str:
        self._seed += 1
        return self._text(tokens, self._seed)

    def settle(self) -> None:
        """Every token that was asked for has come and none more, or the numbers are worth nothing."""
        assert self._peer.idle(), "something of a measure was left over"

    def first_token(self, prompt: str) -> float:
        """Seconds."""
        started = time.perf_counter()
        self._peer.submit(0, prompt, 2)
        found = 0.0
        seen = 0
        while seen < 2:
            seen += len(self._peer.pump())
            found = found or (time.perf_counter() - started if seen else 0.0)
        return found

    def decode(self, streams: int) -> dict[str, float]:
        """Tokens a second of all streams together, arrivals and their prompts included; CPU seconds for 1,000."""
        counts = dict.fromkeys(range(streams), 0)
        arrived, begun = 0, 0.0
        started, burnt = time.perf_counter(), time.process_time()
        while any(count < TOKENS for count in counts.values()):
            while arrived < streams and counts[0] >= min(arrived * STAGGER, TOKENS):
                self._peer.submit(arrived, self.fresh(12), TOKENS)
                arrived += 1
            for number in self._peer.pump():
                counts[number] += 1
            begun = begun or time.perf_counter()
        total, ended = sum(counts.values()), time.perf_counter()
        all_of_them = "1 stream" if streams == 1 else f"{streams} streams"
        found = {
            f"decode {streams} [tok/s]": total / (ended - started),
            f"CPU for 1,000 tokens, {all_of_them} [s]": 1000 * (time.process_time() - burnt) / total,
        }
        return found if streams > 1 else {**found, STEADY: (total - 1) / (ended - begun)}

    def first(self, tokens: int) -> dict[str, float]:
        """Cold, then with the same beginning and another end."""
        prompt = self.fresh(tokens)
        return {
            f"first token, {tokens} tokens [ms]": 1000 * self.first_token(prompt + " and then one"),
            f"first token, {tokens} tokens known [ms]": 1000 * self.first_token(prompt + " but never two"),
        }

    def gaps(self) -> dict[str, float]:
        """Between tokens of running streams while a long prompt arrives and is read."""
        times: dict[int, list[float]] = {number: [] for number in range(GAP_STREAMS)}
        for number in times:
            self._peer.submit(number, self.fresh(12), TOKENS)
        arrived = False
        late = 0
        while late < 2 or any(len(seen) < TOKENS for seen in times.values()):
            made = self._peer.pump()
            now = time.perf_counter()
            for number in made:
                if number in times:
                    times[number].append(now)
                else:
                    late += 1
            if not arrived and all(len(seen) >= 8 for seen in times.values()):
                arrived = True
                self._peer.submit(9, self.fresh(GAP_PROMPT), 2)
        found = sorted(later - sooner for seen in times.values() for sooner, later in pairwise(seen))
        return {
            "gap p99, long prompt arrives [ms]": 1000 * found[int(len(found) * 0.99)],
            "longest gap, long prompt arrives [ms]": 1000 * found[-1],
        }

    def idle(self) -> dict[str, float]:
        """Share of one core, and the most memory so far."""
        burnt = time.process_time()
        time.sleep(IDLE_SECONDS)
        share = (time.process_time() - burnt) / IDLE_SECONDS
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
        return {"idle CPU [% of a core]": 100 * share, "peak RSS [MiB]": peak}


def main() -> int:
    name, model, threads, *more = sys.argv[1:]
    length, text = more or ("", "words")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # in the middle of a measure no EOF is seen
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    sized = length and issubclass(PEERS[name], (Batched, LlamaCpp))
    peer = PEERS[name](model, int(threads), *([int(length)] if sized else []))
    measures = Measures(peer, letters_of if text == "letters" else prompt_of)
    measures.first_token(measures.fresh(40))
    measures.settle()
    print(json.dumps({"mode": getattr(peer, "mode", "")}), file=answers, flush=True)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        found = getattr(measures, what)(*arguments)
        measures.settle()
        print(json.dumps(found), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
