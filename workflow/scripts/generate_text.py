"""Generates a corpus of the generated language, and trains a tokenizer of its words."""

from pathlib import Path

from finegates.job import job_log

job = snakemake
with job_log(job.log[0]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from finegates.causal.text import read_documents
    from finegates.tasks.language import SEPARATOR, generate_corpus
    from finegates.tasks.tokenizer import save_tokenizer, train_tokenizer

    generated = job.params.settings["generated"]
    for path in map(Path, job.output.text) if generated else ():
        split = path.stem
        seed = f"{generated['seed']}-{split}"
        documents = generate_corpus(generated[f"{split}_documents"], seed)
        texts = [text.replace(SEPARATOR, " . ") for text in documents]
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts}), path)
        print(path, len(texts))
    if job.params.words:
        texts = read_documents(job.output.text[0])
        tokenizer = train_tokenizer(texts, vocabulary=job.params.words, max_length=512)
        save_tokenizer(tokenizer, Path(job.output.tokenizer[0]).parent)
