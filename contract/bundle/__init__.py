"""What is in a bundle, and the rules it is held to on both sides."""
