"""Generates a corpus of the generated language."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from finegates.files import whole_file
    from finegates.suite.data.language import SEPARATOR, generate_corpus

    generated = job.params.settings
    for path in map(Path, job.output.text):
        split = path.stem
        seed = f"{generated['seed']}-{split}"
        documents = generate_corpus(generated[f"{split}_documents"], seed)
        texts = [text.replace(SEPARATOR, " . ") for text in documents]
        with whole_file(path) as aside:
            pq.write_table(pa.table({"text": texts}), aside)
        print(path, len(texts))
