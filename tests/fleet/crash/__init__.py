"""Two controllers on PostgreSQL, of which one is killed before or after one of its effects: each transaction that it
commits, each wish that it publishes. The other one ends the rollout.

``controller`` is the process that dies, ``scene`` the rollout around it and what must hold;
``python -m tests.fleet.crash`` tries every point.
"""
