"""Texts on which the runtime's tokenizer has to agree with the source's: scripts, code, white space, marks."""

from __future__ import annotations

TEXTS = (
    "", "Hello", "Hello world, this is plain English text.", " a leading space", "a trailing space ", "two  three",
    "\n", "\n\n\tindented\r\n", " \n \n ", "def f(x):\n    if x > 1:\n        return {'a': [x, 2.5e-3]}\n",
    "SELECT * FROM t WHERE a = 'b';", "https://example.org/a?b=c&d=%20#e", "snake_case CamelCase kebab-case",
    "1234567890 3.14159 1,000,000 0x1F", "don't I'll we've", "été naïve Straße Ærø", "e\u0301 a\u0308 o\u0302",
    "Привет, мир", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "வணக்கம்", "你好,世界。",
    "こんにちは世界", "안녕하세요 세계", "Xin chào", "🙂👍🏽👨\u200d👩\u200d👧🇫🇷", "ﬁ ① ½ ™ Ⅷ", "a\u00a0b\u3000c",
    "“quotes” — dashes… «guillemets»", "∑ x² ≤ √π ∈ ℝ", "<b>markup</b> &amp; </think>", "[INST] x [/INST] <<SYS>>",
    "<0x0A> ▁ Ġ Ċ", "a" * 60, "- item\n- item\n\n1. one\n2. two\n", "```python\nprint('x')\n```",
)  # fmt: skip

MAX_SPECIAL = 24
"""Added tokens of a tokenizer that are tried as text, between words."""
