"""From a request to its one answer.

``requests`` turns payloads into work and faults into frames (pure); ``intake`` accepts; ``queue`` says who is next
(pure); ``jobs`` holds what is known of one request; ``frames`` says when which piece of an answer goes out (pure);
``replies`` sends it; ``seat`` keeps a worker alive; ``swapping`` says which worker gets the next request; ``counting``
counts for probation (pure); ``admission`` says whether there is room and how long it takes; ``streams`` sends what is
due; ``outcomes`` ends a request; ``controls`` obeys clients on the way; ``recovery`` takes up what a restart left;
``ledger_health`` hears how storing fares; ``serving`` puts them together.
"""
