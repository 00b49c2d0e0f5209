"""The house speaks the field's language: words of the old private dialect do not come back (``make check``)."""
