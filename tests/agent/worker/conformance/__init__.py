"""What serving and installation rely on in a worker, asked of every one: the double in this process, the double as a
process, and the product's own worker with a real model.
"""
