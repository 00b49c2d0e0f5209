"""Where models come from, each turned into a :class:`~packager.sources.checkpoint.Checkpoint` directory.

``opening`` tells what was named; ``checkpoint`` looks at a local Hugging Face directory without loading it; ``hub``
fetches one; ``gguf`` converts a GGUF file into one, cached by its digest; ``adapter`` merges a LoRA adapter into one;
``safetensors_header`` and ``weights`` look into weight files.
"""
