"""The MQTT contract (``docs/MQTT.md``): ``topics`` builds and parses topic names; payloads are types, and a room holds
those that say one thing. To a device: ``requests`` (with the turns of a ``conversation``, and ``tools``) and
``desired``. From it: ``answers``, ``reports`` on what it does about the desired state, and what the ``device`` says of
itself; ``faults`` are in all of them. ``reading`` takes payloads from outside, ``encoding`` writes ours, ``asyncapi``
describes them all, by the rules of ``asyncapi_rules``.
"""
