"""The task `detect-anomalies`: which steps of a series are not as usual, learned from a part that is."""
