"""What a rollout is and what happens to it next. Everything here is pure: no clock, no database, no network.

The way through: ``states`` has the enums and their transition tables; ``spec`` reads what an operator writes, with
``selector`` for the devices, ``durations`` for times; ``waves`` puts devices into waves; ``model`` has
the records and ``actions`` what may be done to them; ``facts`` is what is known of the devices, ``observe`` what a
device's report means for its target; ``gates`` judges counters, which ``evidence`` puts together; ``decide`` puts it
all together, ``turn_back`` is its part for halted rollouts, ``asking`` the part that sends; ``operate`` is what a
person may do.
"""
