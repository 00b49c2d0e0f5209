"""What `edge-packager watch` knows and shows.

``series`` keeps the last readings of a number, ``samples`` says which numbers are taken from telemetry, ``fleet`` turns
messages into what is known of each device (all pure), ``screen`` draws that with rich.
"""
