"""The task `language`: the next token of text."""
