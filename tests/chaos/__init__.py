"""Everything goes wrong while thousands of requests are asked: each still gets exactly one result.

``device`` is the agent's serving half as a process, with real worker processes around an engine without a model;
``storm`` asks, disturbs and counts; ``python -m tests.chaos --requests N`` runs it.
"""
