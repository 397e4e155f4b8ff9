"""Answers recorded from other implementations with tiny random weights, and the scripts that record them again."""
