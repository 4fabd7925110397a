"""Jobs of the workflow: seals on what they write, locks, the version of the code."""
