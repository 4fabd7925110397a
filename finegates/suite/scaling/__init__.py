"""What the tables of the tier ``paper`` cost: GPU-hours, memory, disk; see ``docs/scaling.md``.

``python -m finegates.suite.scaling`` writes that page from the tier's configuration;
``python -m finegates.suite.scaling --measure`` measures the memory of activations first.
"""
