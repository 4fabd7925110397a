"""Initial models of runs: loaded, pretrained in the workflow, or random."""
