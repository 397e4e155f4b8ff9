"""The contract suite: every registered thing is held to what its spec promises, in both directions."""
