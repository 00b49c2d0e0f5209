"""How the agent speaks with systemd: readiness and watchdog, the journal, credentials, sockets it is handed."""
