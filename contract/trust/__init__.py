"""From bytes of a source to a :class:`~contract.trust.verified.TrustedManifest`; the only room that knows tuf.

The way through these modules: ``key_policy`` says which keys and signatures count; ``updating`` runs python-tuf over a
source behind the strict readers; ``store`` keeps what was verified so that no power cut can weaken it; ``floor`` and
``clock`` are what trust never falls below; ``resolve`` puts them together; ``signing`` is the packager's side;
``client`` is the common TUF client command line. ``verified``, ``floor`` and ``clock`` import no tuf.
"""
