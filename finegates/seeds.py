"""Seeds derived from names, so that results do not depend on the order of runs.

A run's seed is a hash of its names (task, method, repetition, ...). Adding, removing or reordering
other runs therefore leaves it unchanged.
"""

from __future__ import annotations

import hashlib
import os
import random

SEED_LIMIT = 2**31
"""Exclusive upper bound of every derived seed: it fits a signed 32-bit integer."""


def derive_seed(*names: object) -> int:
    """Return the seed that belongs to a sequence of names.

    The names are written with `str`, each preceded by its length (so that `("ab", "c")` and
    `("a", "bc")` differ), and hashed with SHA-256; the first 64 bits are reduced modulo 2**31.

    Arguments:
        *names: at least one object whose `str` identifies it: text, numbers, booleans.

    Returns:
        An integer in [0, 2**31 - 1], the same on every machine and in every process.

    Raises:
        ValueError: no name was given.
    """
    if not names:
        raise ValueError("derive_seed needs at least one name, for example derive_seed('cola', 0)")
    texts = [str(name) for name in names]
    message = "".join(f"{len(text)}:{text}" for text in texts)
    digest = hashlib.sha256(message.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % SEED_LIMIT


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators (CPU and every GPU).

    Arguments:
        seed: an integer in [0, 2**31 - 1], usually from `derive_seed`.

    Raises:
        ValueError: the seed is outside that range.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed must be in [0, {SEED_LIMIT - 1}], got {seed}")
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002 - libraries that we call draw from the global state
    torch.manual_seed(seed)
    # Read by child processes only: this process's string hashing was fixed when it started.
    os.environ["PYTHONHASHSEED"] = str(seed)
