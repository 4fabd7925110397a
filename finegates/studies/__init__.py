"""Studies beside the main table: a few methods compared on a few tasks, with more seeds."""
