"""Tables in Markdown, for the READMEs."""

from __future__ import annotations

#: What stands where nothing is recorded.
MISSING = "not measured"


def row(*words: str) -> str:
    """A table's row of these cells."""
    return "| " + " | ".join(words) + " |"


def heading(*words: str) -> list[str]:
    """A table's first two rows."""
    return [row(*words), "|" + " --- |" * len(words)]
