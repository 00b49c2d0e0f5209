"""What the agent must not forget: ``database`` opens ``state.db``, the other modules each own their tables."""
