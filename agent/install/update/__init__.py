"""One update, from the state table to the bundle that serves, or to the one before it."""
