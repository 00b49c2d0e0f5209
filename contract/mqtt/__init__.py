"""The MQTT contract (``docs/MQTT.md``): ``topics`` builds and parses topic names, ``messages`` their payloads."""
