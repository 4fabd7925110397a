"""Training runs, and the record that each of them writes."""
