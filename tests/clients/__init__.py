"""The clients in other languages, against a real broker and an agent whose model is a double."""
