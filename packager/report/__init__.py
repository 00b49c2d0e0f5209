"""``evidence/report.html``: what was measured, as one page that opens anywhere and prints.

``parts`` adds up the graph's bytes; ``plots`` draws SVG; ``page`` writes the document. No scripts, no fonts, nothing
fetched; and nothing that differs between two builds of the same inputs on the same host.
"""

from packager.report.page import write_report

__all__ = ["write_report"]
