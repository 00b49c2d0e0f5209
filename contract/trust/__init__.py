"""From bytes of a source to a :class:`TrustedManifest`, through TUF. The only room that knows tuf."""
