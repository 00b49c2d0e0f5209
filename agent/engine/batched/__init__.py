"""The ``batched`` engine: onnxruntime driven directly, so that requests join and leave a batch at every step.

``opening`` makes a model ready to run, once: ``loading`` opens its session, ``graph`` reads what a decoder's graph
needs and declines what cannot be driven, ``self_check`` measures on this processor whether rows depend on each other,
``verdict`` keeps what it found, and ``independence`` says what can be promised of it (pure).

``engine`` is the interface of all engines and ``batch`` what a step does: ``runner`` runs one prefill slice or one
decode step over a contiguous run of slots; ``pool`` holds keys and values of all slots; ``slots`` says which request
lies where (pure); ``slicing`` where a prompt is cut, and ``positions`` where its tokens stand (pure); ``prefixes``
remembers prompts that were read before (pure); ``speculation`` drafts tokens (pure).
"""
