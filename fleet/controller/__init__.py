"""Drives rollouts: ``reconciler`` decides and stores, ``publisher`` hands the broker what was decided, ``retained``
sees whether the broker still holds it.
"""
