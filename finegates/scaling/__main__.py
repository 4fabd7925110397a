"""``python -m finegates.scaling [--measure]``: see the package."""

import argparse

from finegates.scaling.page import write

parser = argparse.ArgumentParser(description="Write docs/scaling.md.")
parser.add_argument("--measure", action="store_true", help="measure activations first")
write(parser.parse_args().measure)
