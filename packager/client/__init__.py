"""Asking devices from a program.

``broker`` reads where the broker is; ``replies`` puts frames together to answers, ``asking`` says what to send when,
``completion`` has OpenAI's shapes (all pure); ``client`` is the blocking client that the commands use, ``async_client``
the one for asyncio. The MQTT library is imported in :mod:`packager.mqtt` alone.
"""
