"""Engines turn prompts into tokens, one step at a time.

``stepping`` is the interface that every engine implements; ``genai`` drives onnxruntime-genai's Generator; ``stops``
finds stop strings across token boundaries. An engine lives in a worker process (``agent.worker``) and nowhere else.
"""
