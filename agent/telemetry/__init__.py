"""How the device and its model fare: ``system`` samples the machine, ``llm`` counts what was answered (pure)."""
