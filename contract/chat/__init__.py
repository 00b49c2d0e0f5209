"""Chat templates: from messages to the text that a model reads, in the one way that packager and device share.

``files`` finds a model's templates and special tokens, ``environment`` is the Jinja that transformers renders with,
``limits`` bounds what a template takes, and ``template`` puts the three together. A template is signed, but whoever
wrote it may mean harm: it is rendered in a sandbox, with bounds on processor time, memory and output.
"""
