"""Cost of the tables of the tier ``paper``: GPU-hours, memory, disk.

``finegates scaling`` writes ``docs/scaling.md`` from the tier's configuration.
``finegates scaling --measure`` measures the memory of activations first.
"""
