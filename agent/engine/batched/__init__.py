"""The ``batched`` engine: onnxruntime driven directly, so that requests join and leave a batch at every step.

``graph`` reads what a decoder's graph needs and declines what cannot be driven; ``pool`` holds keys and values of all
slots; ``runner`` runs one prefill slice or one decode step over a contiguous run of slots; ``slots`` says which
request lies where (pure); ``prefixes`` remembers prompts that were read before (pure); ``self_test`` measures on this
processor whether rows depend on each other and ``independence`` says what can be promised of it (pure); ``engine`` puts
them together behind the stepping interface.
"""
