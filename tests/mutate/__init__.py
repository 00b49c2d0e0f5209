"""Changes to published repositories that must be refused or be without effect.

The property: flip any one byte, or delete or duplicate any one JSON token, of a published repository or
``.edgebundle`` file, and a device refuses it with a reason code, finds the source unusable, or installs exactly the
original bytes. ``python -m tests.mutate --minutes N`` tries random changes for as long as one likes.
"""
