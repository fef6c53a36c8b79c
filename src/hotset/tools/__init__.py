"""What prepares models: each tool is one file, and passes things on as files."""

from hotset.tools.resolve import resolve_model

__all__ = ["resolve_model"]
