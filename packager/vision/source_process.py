"""The process that asks the source about pictures: the family's reference, with its products in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from contract.bundle.canary import PICTURE
from contract.errors import BuildRefused
from packager.evaluate.ends import find_ends
from packager.evaluate.layerwise import in_fp32
from packager.subprocess_job import Reporter, child_main
from packager.vision.families import vision_family
from packager.vision.family import Prepared, Tensors, VisionSource
from packager.vision.jobs import ROWS, SOURCE_LOOK, Looked, LookJob, SourceLook
from packager.vision.pictures import draw


def look(job: LookJob, reporter: Reporter) -> SourceLook:
    """Answer every case, and write the log-probabilities of each token of the answers."""
    import torch
    from transformers import AutoTokenizer

    path = Path(job.checkpoint)
    family = vision_family(path)
    side = family.side(path)
    tokenizer = AutoTokenizer.from_pretrained(job.text, trust_remote_code=False)
    ends = set(find_ends(Path(job.text), tokenizer))
    source = family.open_source(path, Path(job.text))
    cases: list[Looked] = []
    vocabulary = 0
    with torch.inference_mode(), (Path(job.out) / ROWS).open("wb") as file:
        for number, (picture, question) in enumerate(job.cases, 1):
            prepared = family.prepare(path, draw(picture, side))
            prompt = write_prompt(tokenizer, question, prepared)
            answer, vocabulary = _answer(source, prompt, prepared.inputs, (job.limit, ends), file)
            text = str(tokenizer.decode(answer, skip_special_tokens=True))
            cases.append(Looked(picture, question, prompt, prepared.features, answer, text))
            reporter.progress(number, len(job.cases))
    return SourceLook(cases, vocabulary)


def write_prompt(tokenizer: Any, question: str, prepared: Prepared) -> list[int]:
    """Tokens of ``question`` behind the picture, in the chat template where there is one."""
    text = f"{PICTURE}\n{question}"
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    if text.count(PICTURE) != 1:
        raise BuildRefused("the chat template loses what stands for a picture, so no question about one can be asked")
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(PICTURE))
    return [*before, *prepared.ids, *after]


def _answer(
    source: VisionSource, prompt: list[int], inputs: Tensors, stop: tuple[int, set[int]], file: IO[bytes]
) -> tuple[list[int], int]:
    """The greedy answer with what ended it, if anything did, and the width of the rows written to ``file``; ``stop``:
    after how many tokens, and at which.
    """
    import torch

    limit, ends = stop
    model, given = source.prompt(prompt, inputs)
    made: list[int] = []
    with in_fp32(model):
        output = model(**given, use_cache=True, logits_to_keep=1)
        while True:
            row = output.logits[0, -1].float()
            if not bool(torch.isfinite(row).all()):
                raise BuildRefused("the source says nothing finite about a picture; its weights are damaged")
            file.write(torch.log_softmax(row, -1).half().numpy().tobytes())
            made.append(int(row.argmax()))
            if made[-1] in ends or len(made) == limit:
                return made, len(row)
            step, past = torch.tensor([made[-1:]]), output.past_key_values
            output = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)


if __name__ == "__main__":
    child_main(SOURCE_LOOK, look)
