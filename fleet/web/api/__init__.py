"""The JSON API: ``operation`` is what one is, ``operations`` lists them, ``serving`` answers with them, ``openapi``
describes them.
"""
