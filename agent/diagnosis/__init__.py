"""What ``edge-agent doctor`` looks at: ``finding`` is one line of its page, ``machine`` looks at processor, runtime,
memory and clock, ``state`` at directory, database, trust and bundles, ``service`` at systemd, ``broker`` really sends
and receives. No check raises; what cannot be found out is a finding too.
"""
