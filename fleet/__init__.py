"""The fleet service: knows many devices, and rolls bundles out to them in waves that stop themselves.

``rollout`` is the pure core: states, rules and one function that decides what happens next.
"""
