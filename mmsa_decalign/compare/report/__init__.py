"""The report of a comparison as one HTML file; see page.py for what it is made of."""

from .page import NAME, write

__all__ = ["NAME", "write"]
