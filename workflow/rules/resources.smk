# What jobs ask of a scheduler.


def memory(mb):
    """Memory of a job, twice as much at each further attempt (profiles/slurm retries)."""
    return lambda wildcards, attempt: mb * 2 ** (attempt - 1)
