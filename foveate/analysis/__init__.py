"""Understanding models: what their operators cost, and over which lengths they attend."""
