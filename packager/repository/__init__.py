"""The signed repository: a static directory that any web server can serve.

The way through these modules: ``keyring`` holds the keys, ``bundle_directory`` reads what is to be published,
``metadata`` reads what is published now, ``repository`` changes it atomically, ``archive`` writes and reads
``.edgebundle`` files, ``report`` shows and verifies.
"""

from packager.repository.repository import Outcome, Repository

__all__ = ["Outcome", "Repository"]
