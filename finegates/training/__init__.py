"""Training with gates: trainer, schedule, checkpoints and distillation."""
