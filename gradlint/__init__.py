"""A linter for PyTorch training code that confirms its findings by a short, confined experiment."""

__version__ = "0.1.0"
