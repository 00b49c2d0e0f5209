"""The installer process, and what it and the agent send each other."""
