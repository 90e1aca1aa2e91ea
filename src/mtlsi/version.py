"""The package's version, which a checkout that is not installed has, too."""

__version__ = "0.1.0"
