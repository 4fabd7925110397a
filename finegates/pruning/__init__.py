"""One-shot pruning of shared groups to a budget, without training gates."""
