"""The MQTT contract (``docs/MQTT.md``): ``topics`` builds and parses topic names, ``messages`` are their payloads,
``reading`` takes those from outside, ``asyncapi`` describes them all, by the rules of ``asyncapi_rules``.
"""
