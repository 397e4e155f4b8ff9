"""The embedded text; see README.md beside this file."""
