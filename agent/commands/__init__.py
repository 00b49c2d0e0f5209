"""One module for each sub-command: ``configure`` its parser, ``run`` it."""
