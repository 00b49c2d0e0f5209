"""From a request to its one answer; docs/ARCHITECTURE.md shows the way of a prompt.

Pure: ``scheduler`` takes the events and returns the commands of ``events``; ``active_request`` is a request and the
table of its states, ``slots`` a replica as the scheduler sees it, ``queue`` decides who is next, ``frames`` which piece
of an answer goes out when, ``statistics`` counts for probation, ``requests`` turns payloads into generations and faults
into frames.

Effects: ``loop`` carries out the commands; ``replica`` keeps one worker alive, ``switchover`` decides which replica
takes new requests; ``intake`` and ``controls`` receive messages, ``recovery`` what a restart left; ``stream_sender``,
``completion`` and ``replies`` send; ``settlement`` has every message acknowledged. ``serving`` builds them all.
"""
