"""Better INT4 at the same bytes a block: weights rounded so that what a layer puts out changes least.

``samples`` makes or reads the text, ``passages`` is the one that is shipped; ``grid`` chooses scales and zero points of
blocks; ``gptq`` rounds one matrix column by column, passing each error on to the columns that can make up for it;
``layers`` walks the model so that every layer is rounded on what the rounded layers before it give, or ``auto_round``
leaves that to auto-round; ``tuning`` moves scales and norms together at the end; ``export`` writes a GPTQ checkpoint,
which the model builder reads. ``single_pass`` is the short way, the default: one pass, nothing tuned, a plain
checkpoint. All of these run in ``process``, a process of its own; ``calibrate`` starts it and keeps its result by what
went in. ``streaming`` quantises inside the model builder, one weight in memory at a time.
"""
