"""What the tables of the tier ``paper`` cost: GPU-hours, memory, disk; see ``docs/scaling.md``.

``python -m finegates.scaling`` writes that page from the tier's configuration;
``python -m finegates.scaling --measure`` measures the memory of activations first.
"""
