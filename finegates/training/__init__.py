"""Training with gates: the trainer, its schedule, its checkpoints, distillation."""
