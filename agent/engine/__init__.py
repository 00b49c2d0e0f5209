"""Engines turn prompts into tokens, one step at a time.

``stepping`` is the interface that every engine implements; ``choice`` opens the one that fits a bundle; ``genai``
drives onnxruntime-genai's Generator, one of ``turns`` for each request. Shared by all: ``tokenizing`` (messages to
tokens, tokens to text), ``answer`` (one request on its way), ``sampling`` (the next token), ``stops`` (stop strings
across token boundaries), ``memory`` (what there is and what keys and values cost). An engine lives in a worker process
(``agent.worker``) and nowhere else.
"""
