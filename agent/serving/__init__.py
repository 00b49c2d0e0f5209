"""From a request to its one answer.

``requests`` turns payloads into work and errors into frames (pure); ``queue`` says who is next (pure); ``frames``
says when which piece of an answer goes out (pure); ``jobs`` holds what is known of one request; ``seat`` keeps a
worker alive; ``serving`` puts them together with the ledger and the connection.
"""
