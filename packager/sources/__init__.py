"""Where models come from, each turned into a :class:`~packager.sources.checkpoint.Checkpoint` directory.

``opening`` tells what was named; ``checkpoint`` looks at a local Hugging Face directory without loading it; ``gguf``
converts a GGUF file into one, cached by its digest; ``safetensors_header`` reads what weight files claim.
"""
