"""The task `forecast`: several future steps of a multivariate series from its past."""
