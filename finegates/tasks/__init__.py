"""Tasks: GLUE's tables, a generated language shaped like them, and their floor scores."""
