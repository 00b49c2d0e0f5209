"""From a request to its one answer.

``requests`` turns payloads into work and faults into frames (pure); ``intake`` accepts; ``queue`` says who is next
(pure); ``jobs`` holds what is known of one request; ``frames`` says when which piece of an answer goes out (pure);
``replies`` sends it; ``seat`` keeps a worker alive; ``swapping`` says which worker gets the next request; ``counting``
counts for probation (pure); ``serving`` puts them together.
"""
