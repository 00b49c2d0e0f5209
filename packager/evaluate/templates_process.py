"""The process that renders conversations as transformers does; no weights need to be there."""

from __future__ import annotations

from packager.evaluate.jobs import TEMPLATES, Templates, TemplatesJob
from packager.evaluate.reference_process import render
from packager.subprocess_job import Reporter, child_main


def render_all(job: TemplatesJob, _reporter: Reporter) -> Templates:
    """What transformers makes of conversations with the template of the job."""
    return render(job.checkpoint, job.template)


if __name__ == "__main__":
    child_main(TEMPLATES, render_all)
