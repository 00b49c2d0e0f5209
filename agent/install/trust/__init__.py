"""What may be installed, and what becomes of an installed bundle that no longer may be."""
