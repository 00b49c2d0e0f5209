"""What the packager and the agent agree on.

The way through these modules, in the order in which a bundle travels:

``names`` and ``strict_json`` read outside input; ``manifest`` and ``chunks`` say what a bundle is; ``genai_config``
and ``onnx_wire`` say what its files may contain; ``layout`` says where things lie in a repository; ``source`` reads
repositories (directory, HTTP, tar); ``trust`` turns their bytes into a :class:`~contract.trust.TrustedManifest`;
``mqtt`` holds topics and messages; ``durable`` is the one place that writes files so that they survive a power cut;
``errors`` and ``reasons`` are how all of it says no.

Imports only the standard library and msgspec, and in ``contract.trust`` alone tuf, securesystemslib and cryptography.
"""
