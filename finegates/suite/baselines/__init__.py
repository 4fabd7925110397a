"""What gates are compared with in time: unstructured and two-of-four sparsity."""
