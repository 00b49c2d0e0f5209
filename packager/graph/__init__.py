"""Built graphs: reading them, changing them, holding their tables against the source."""
