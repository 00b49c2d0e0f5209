"""An agent in real life, for as long as one likes: prompts, hot swaps, and everything around it failing.

``world`` is what surrounds it (a repository behind nginx, mosquitto, the agent's process and its workers), ``asker``
the client, ``soak`` what happens and what it came to; ``python -m tests.soak --minutes N`` runs it.
"""
