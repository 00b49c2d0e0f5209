"""The gateway: OpenAI's interface over HTTP in front of every device, asked over MQTT by :mod:`edge_bundle`.

The way of a request: ``gateway`` (routes) → ``access`` (who asks, and how much) → ``requests`` (OpenAI's body as a
device's) → ``models`` (whom ``model`` means) → ``choice`` and ``affinity`` (which device) → ``responding``, ``asking``
(ask it, another one where that is safe) → ``answers`` (OpenAI's objects and chunks) or ``problems`` (OpenAI's errors).
"""
