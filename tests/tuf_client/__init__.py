"""The product's readers, key policy and errors as a plain TUF client, for suites that drive one from outside."""
