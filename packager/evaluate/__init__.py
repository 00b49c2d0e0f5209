"""How good a build is, in numbers that a stranger can repeat.

``text`` is what is read; ``source`` runs the source model over it in a process of its own (``source_process``) and
keeps what it said; ``divergence`` compares rows of logits; ``behaviour`` compares answers; ``gates`` decides. The
bundle's own side is read where it is loaded anyway, in :mod:`packager.evaluate.check_process`.
"""
