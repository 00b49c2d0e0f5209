"""RESOLVE to SEAL: the bytes of a bundle, from its sources into a sealed directory."""
