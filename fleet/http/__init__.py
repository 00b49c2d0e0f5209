"""HTTP: one server in a thread for whatever a process serves (the gateway; a console and an API stand beside it).

``server`` listens, ``app`` puts the parts together and bounds what comes in, ``body`` reads bodies, ``connection``
notices clients that leave, ``metrics`` writes ``/metrics``.
"""
