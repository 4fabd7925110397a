"""All readers of untrusted files, by name.

``python tests/fuzz/targets.py NAME -runs=25000`` fuzzes one by coverage (Atheris).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from target import Target

if __name__ == "__main__":
    import atheris

    coverage = atheris.instrument_imports(include=["finegates", "yaml"])
else:
    coverage = nullcontext()

with coverage:
    import model_files
    import workflow_files

TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make
    for make in (
        workflow_files.configuration,
        workflow_files.record,
        workflow_files.causal_record,
        workflow_files.table,
        workflow_files.text,
        model_files.compact_model,
        model_files.compact_tensors,
        model_files.task_file,
        model_files.adapter,
        model_files.model_configuration,
    )
}


def main(arguments: list[str]) -> None:
    """Fuzzes a target until libFuzzer's options end it; ``COUNTS`` is the file for its counts."""
    name, *options = arguments
    target = TARGETS[name]()
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}"))
    for place, seed in enumerate(target.seeds):
        (corpus / str(place)).write_bytes(seed)
    counts = os.environ.get("COUNTS")

    def once(content: bytes) -> None:
        target(content)
        # libFuzzer ends the process without running Python's exit handlers.
        if counts and (target.accepted + target.refused) % 100 == 0:
            written = json.dumps({"accepted": target.accepted, "refused": target.refused})
            Path(counts).write_text(written)

    longest = 4 * max(map(len, target.seeds))
    atheris.Setup([sys.argv[0], *options, f"-max_len={longest}", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
