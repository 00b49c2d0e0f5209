"""Pictures, from files to what stands for them in a prompt: planned by their headers, encoded beside the decoding, and
kept for the next question about them.
"""
