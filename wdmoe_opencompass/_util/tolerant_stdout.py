"""Standard output that takes any text: what its encoding has no sign for is escaped, not an error."""

import sys


def make_stdout_tolerant() -> None:
    """Let every print succeed: a file's or a model's name need not be text that the terminal's encoding holds."""
    if hasattr(sys.stdout, "reconfigure"):  # not where a test or a notebook has put something else in its place
        sys.stdout.reconfigure(errors="backslashreplace")
