"""From what devices publish to the registry.

``inbox`` takes messages as fast as they come and keeps the last of each kind; ``reading`` reads them strictly and
within bounds (pure); ``collector`` makes rows of them and writes these in one transaction.
"""
