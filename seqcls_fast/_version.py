"""The version, in a file of its own: the build reads it without running anything."""

__version__ = "0.1.0"
