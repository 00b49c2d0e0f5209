"""The agent kit: everything a device needs to run the agent, in one archive, for boxes without a network.

``target`` says for which machine, ``wheels`` lets pip resolve and fetch for it, ``archive`` puts wheels, root of trust,
configuration and ``install.sh`` into one tar. The unit files travel in our own wheel.
"""
