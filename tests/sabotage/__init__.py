"""Proof that every check against an attack is held by a test: each check is taken out, and its tests must fail.

``checks`` is the table: an attack, the lines that stop it, and the tests named after it. ``removal`` loads modules
with those lines taken out, ``trial`` runs the tests so. ``python -m tests.sabotage`` tries all of them.
"""
