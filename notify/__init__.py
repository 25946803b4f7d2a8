"""notify: a real-time notification server on Twisted, run as ``twistd notify``."""

from notify._version import __version__

__all__ = ["__version__"]
