"""From a desired bundle to an active one.

``machine`` is the state table (pure); ``installer`` is the short-lived process for RESOLVE to SEAL; ``reconciler``
drives the table in the agent and does CANARY to COMMIT; ``ports`` is what serving has to offer for that.
"""
