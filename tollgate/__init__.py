"""Tollgate's command line; each command is a few lines over one room."""

__version__ = "0.1.0"
