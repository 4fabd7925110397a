"""What the tables of the tier ``paper`` cost: GPU-hours, memory, disk; see ``docs/scaling.md``.

``finegates scaling`` writes that page from the tier's configuration;
``finegates scaling --measure`` measures the memory of activations first.
"""
