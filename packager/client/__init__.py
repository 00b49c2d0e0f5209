"""Asking devices from a program.

``broker`` reads where the broker is; ``replies`` puts frames together to answers (pure); ``client`` is the blocking
client that the commands use. The MQTT library is imported in :mod:`packager.mqtt` alone.
"""
