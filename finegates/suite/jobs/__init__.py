"""Jobs of the workflow: checksums of outputs, locks, code versions, terminal."""
