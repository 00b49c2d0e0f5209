"""Cuts the power before, within and after every effect of installation and activation, restarts, and checks what must
hold.

``scenarios`` are the sequences, ``world`` is one agent's life with numbered points, ``invariants`` is what must hold
after a restart, ``unsynced`` is a disk that loses what was not flushed; ``python -m tests.crash`` runs all of it and
prints how many points it tried.
"""
