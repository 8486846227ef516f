"""The error a person can mend: one line that says what is wrong, where, and what to do. Exit status 2."""

from __future__ import annotations


class UsageProblem(Exception):
    """Wrong usage or wrong configuration, found before any work was done."""
