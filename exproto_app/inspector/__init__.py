"""The inspector: a web page that shows what the devices of a running app do."""

from .server import Inspector

__all__ = ["Inspector"]
