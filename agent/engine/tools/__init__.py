"""Tools: how a model is told of functions, how it is held to valid calls, and how its calls are read while it writes.

``forms`` knows how each family writes a call and tells the family from its chat template, ``rendering`` puts functions
and their results into a conversation, ``call_grammar`` is the grammar of an answer, and ``answer_reader`` takes an
answer apart into text, thought and calls as it arrives. All of it is pure.
"""
