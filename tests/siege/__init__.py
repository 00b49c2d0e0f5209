"""An agent under siege: everything that integrators, brokers, proxies and attackers can send, and kills in between.

``grammar`` says what is sent, from a seed alone; ``siege`` sends it to a real agent behind a real mosquitto, breaks
what can be broken meanwhile, and looks after each minute whether the device still does what it is for
(``invariants``). ``python -m tests.siege --minutes N --seed S`` runs it.
"""
