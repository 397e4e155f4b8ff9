"""The task `classify-series`: one class for each of many whole series."""
