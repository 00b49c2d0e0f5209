"""The signed repository: a static directory that any web server can serve.

The way through these modules: ``keyring`` holds the keys, ``bundle_directory`` reads what is to be published,
``metadata`` reads what is published now, ``staging`` carries a change in, ``repository`` is what one does with it,
``archive`` writes and reads ``.edgebundle`` files, ``report`` shows and verifies.
"""

from packager.publish.repository import Repository
from packager.publish.staging import Expiries, Outcome

__all__ = ["Expiries", "Outcome", "Repository"]
