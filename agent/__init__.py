"""The device side: fetch -> verify -> install -> canary -> activate -> serve -> report."""
