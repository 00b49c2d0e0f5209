"""Who may do what, and how they prove who they are. Everything here is pure: no clock, no database, no network.

``roles`` has the roles with their permissions, ``passwords`` hashes and checks passwords, ``secrets`` makes session and
API tokens, of which only hashes are stored, ``throttle`` slows guessing down.
"""
