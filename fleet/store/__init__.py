"""Where everything is kept: SQLite in one file, or PostgreSQL by URL.

``schema`` has the tables, ``database`` opens them and says in our errors what went wrong; ``devices`` is the registry,
``counters`` what devices count, ``rollouts`` loads and saves rollouts with the wishes they send, ``outbox`` hands these
out, ``leader`` lets one controller at a time decide, ``audit`` writes down who did what, ``accounts`` has who
they are, ``catalogue`` the bundles of the repository, ``idempotency`` what was answered to requests. SQLAlchemy is
imported here alone.
"""
