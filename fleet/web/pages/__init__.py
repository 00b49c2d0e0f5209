"""The console: pages that are whole without scripts.

``page`` is what each is and how it is served, ``rendering`` how it becomes HTML; then one module for each part.
"""
