"""A language model of a few hundred kilobytes that really answers: trained here in seconds, the same every time.

It knows the few questions of :data:`ANSWERS` by heart in ChatML, so tests can expect ``Paris``, and a damaged copy of
it is really worse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Write one sentence about the sea.": "The sea is wide and blue, and it never sleeps.",
    "Count from one to five.": "one, two, three, four, five",
    "Say hello.": "Hello, how are you today?",
    "Tell me a long story.": "Once upon a time a small model lived in a small box and "
    + "it counted and counted and " * 12,
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 512
VOCABULARY = 448
STEPS = 220


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer with ChatML's control tokens: ids 0 to 2 are text end, turn start, turn end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for pair in ANSWERS.items() for text in pair] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=CONTEXT,
    )
    fast.chat_template = TEMPLATE
    return fast


def make_checkpoint(directory: Path, **changes: Any) -> Path:
    """Train and save a two-layer Llama with its tokenizer; ``changes`` go into its config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(20)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            **changes,
        }
    )
    model = LlamaForCausalLM(config)
    teach(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model for tests.\n", "utf-8")
    (directory / "LICENSE").write_text("Apache License, Version 2.0\n", "utf-8")
    return directory


def teach(model: Any, tokenizer: Any) -> None:
    """Make ``model`` know :data:`ANSWERS` by heart."""
    import torch

    # Products this small gain nothing from a second thread, and on a busy machine its spinning costs nine tenths.
    torch.set_num_threads(1)
    rows = []
    for question, answer in ANSWERS.items():
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(
            tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")["input_ids"][0]
        )
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=2) for row in rows])
    labels = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=-100) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
