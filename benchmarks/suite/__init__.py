"""The asv suite: what the package costs, commit by commit."""
