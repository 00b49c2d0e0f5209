"""Worker processes: one per loaded model, owner of the runtime.

``protocol`` defines the messages and their framing (pure); ``process`` is the worker's main loop, shut in by
``isolation`` (whose system-call filter ``seccomp`` makes, pure); ``supervision`` is the agent's side: spawn, talk to,
watch and end a worker; ``ports`` is what the rest of the agent sees of it; ``settings`` its configuration.
"""
