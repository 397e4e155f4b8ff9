"""The task `impute`: what was not measured, from what was measured around it."""
