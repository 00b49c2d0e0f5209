"""Engines turn prompts into tokens, one step at a time.

``interface`` is what every engine implements; ``engine_selection`` opens the one that fits a bundle; ``batched`` drives
onnxruntime directly, so that requests share a batch; ``genai`` drives onnxruntime-genai's Generator, one
(``generator_sequence``) for each request. Shared by all: ``config`` (a bundle's facts), ``tokenizing`` (messages to
tokens, tokens to text), ``sequence`` (one request on its way), ``sampling`` (the next token), ``grammar`` (JSON schemas
and patterns), ``processors`` (scoring by packages of the operator), ``stops`` (stop strings across token boundaries),
``scoring`` (canaries), ``memory`` (what there is and what keys and values cost), ``runtime_errors`` (where runtimes are
called). An engine lives in a worker process (``agent.worker``) and nowhere else.
"""
