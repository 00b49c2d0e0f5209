"""Devices that do not exist, speaking MQTT as agents do: ``device`` is one (pure), ``links`` connects many.

``python -m tests.fleet.simulate --devices 30 --broker mqtt://localhost:1883``
"""
