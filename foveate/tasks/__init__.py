"""Tasks: reading data, splitting, batching, metrics and baselines; recipes: how a system is trained."""
