"""aarch64 on any machine: the tests under qemu-user, and a whole device booted by qemu-system.

``debian`` unpacks a Debian for aarch64, ``packages`` puts the pinned Python packages into it. ``emulated`` runs pytest
in there (``make test-aarch64``), ``boot`` runs a device with its own kernel (``make test-arm``).
"""
