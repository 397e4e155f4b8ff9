"""The layers that the Dynamical Systems Framework compares and suggests (arXiv 2405.15731)."""
