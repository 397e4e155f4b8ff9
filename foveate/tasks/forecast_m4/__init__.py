"""The task ``forecast-m4``: many short series, by the rules of the M4 competition."""
