"""What lies on this device is what was signed, and nothing in it is dangerous."""
