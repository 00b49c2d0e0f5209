"""From a request to its one answer.

``requests`` turns payloads into work and faults into frames (pure); ``intake`` accepts; ``queue`` says who is next
(pure); ``active_request`` holds what is known of one request; ``frames`` says when which piece of an answer goes out
(pure); ``replies`` sends it; ``replica`` keeps a worker alive; ``switchover`` says which worker gets the next request;
``statistics`` counts for probation (pure); ``admission`` says whether there is room and how long it takes;
``stream_sender`` sends what is due; ``completion`` ends a request; ``controls`` obeys clients on the way; ``recovery``
takes up what a restart left; ``store_health`` hears how storing goes; ``serving`` puts them together.
"""
