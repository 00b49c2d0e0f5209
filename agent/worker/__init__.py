"""Worker processes: one per loaded model, owner of the runtime.

``protocol`` defines the messages and their framing (pure); ``process`` is the worker's main loop; ``supervision``
is the agent's side: spawn, talk to, watch and end a worker.
"""
