"""Peak tensor memory of a computation."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_tensor_bytes(run: Callable[[], object]) -> int:
    """Peak bytes of tensors that are allocated while ``run`` runs.

    Measured by the accelerator's allocator, or else by the profiler's allocation events on the CPU.
    The resident memory of a process would include the interpreter, libraries, and freed memory that
    the allocator keeps.

    Args:
        run: called once.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak
