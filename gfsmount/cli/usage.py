"""The error of a command that was called wrongly."""

from __future__ import annotations

from gfscore.errors import Code, GfsError


class UsageProblem(GfsError):
    """Exit status 2; `message` names what is wrong and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.INVALID, message)
