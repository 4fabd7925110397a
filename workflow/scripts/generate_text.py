"""Generates a corpus of the generated language, and trains a tokenizer of its words."""

from pathlib import Path

from finegates.job import running

job = snakemake
with running(job):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from finegates.causal.text import read_documents
    from finegates.files import whole_file, whole_folder
    from finegates.tasks.language import SEPARATOR, generate_corpus
    from finegates.tasks.tokenizer import save_tokenizer, train_tokenizer

    generated = job.params.settings["generated"]
    for path in map(Path, job.output.text) if generated else ():
        split = path.stem
        seed = f"{generated['seed']}-{split}"
        documents = generate_corpus(generated[f"{split}_documents"], seed)
        texts = [text.replace(SEPARATOR, " . ") for text in documents]
        with whole_file(path) as aside:
            pq.write_table(pa.table({"text": texts}), aside)
        print(path, len(texts))
    if job.params.words:
        texts = read_documents(job.output.text[0])
        tokenizer = train_tokenizer(texts, vocabulary=job.params.words, max_length=512)
        with whole_folder(Path(job.output.tokenizer[0]).parent) as folder:
            save_tokenizer(tokenizer, folder)
