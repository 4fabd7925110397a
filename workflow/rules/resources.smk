# Resources that jobs request from a scheduler.


def memory(mb):
    """Memory of a job, doubled at each retry (profiles/slurm retries)."""
    return lambda wildcards, attempt: mb * 2 ** (attempt - 1)
