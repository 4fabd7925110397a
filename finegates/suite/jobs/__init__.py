"""Jobs of the workflow: checksums, locks, code versions, terminal."""
