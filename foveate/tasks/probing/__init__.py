"""Probes: tasks whose token sequences are drawn from a seed, each asking for one ability of a sequence mixer."""
