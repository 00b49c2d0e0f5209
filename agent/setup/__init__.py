"""Making a device out of a machine: units, accounts, directories, configuration, trust.

``paths`` says where things belong, ``plan`` compares that with what is there and lists the steps (pure but for
reading), ``steps`` are what can be done and how each is told to a person, and carry themselves out. Running a plan
again finds nothing to do.
"""
