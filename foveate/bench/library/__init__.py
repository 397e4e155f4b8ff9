"""The cases. One decorated function each; adding one is a handful of lines."""
