"""How an experiment says why it could not be run."""

from __future__ import annotations


class ProbeError(Exception):
    """An experiment ended without a measurement.

    ``reason`` is one of the closed list in ``gradlint.rule.REASONS``; ``detail`` says in a few words what
    happened and, where possible, what would make it runnable.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a refused allocation; PyTorch's CPU allocator says so by a plain RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return type(error) is RuntimeError and any(sign in str(error) for sign in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory", "bad_alloc")
