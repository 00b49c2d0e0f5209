"""Cuts the power before every effect of installation and activation, restarts, and checks what must hold.

``scenarios`` are the sequences, ``world`` is one agent's life with numbered effects, ``invariants`` is what must hold
after a restart; ``python -m tests.crash`` runs all of it and prints how many points it tried.
"""
