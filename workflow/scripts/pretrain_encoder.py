"""Pretrains the smoke tier's encoder, with its tokenizer, on the generated language."""

import json
from pathlib import Path

from finegates.suite.jobs.job import running, seconds_since_start

job = snakemake
with running(job):
    from finegates.files import whole_folder, write_text
    from finegates.seeds import derive_seed
    from finegates.suite.config.tier import Pretraining
    from finegates.suite.data.language import generate_corpus
    from finegates.suite.data.tokenizer import train_tokenizer
    from finegates.suite.models.encoder import pretrain

    startup = seconds_since_start()
    settings = Pretraining(**job.params.settings)
    corpus = generate_corpus(settings.documents, derive_seed("pretraining", "corpus"))
    tokenizer = train_tokenizer(corpus, max_length=settings.max_length)
    seed = derive_seed("pretraining", "encoder")
    with whole_folder(Path(job.output.encoder[0]).parent) as folder:
        pretrain(corpus, tokenizer, settings, seed=seed, folder=folder)
    summary = {
        "documents": len(corpus),
        "vocabulary": len(tokenizer),
        "threads": settings.threads,
        "startup_s": startup,
        "wall_s": seconds_since_start(),
    }
    write_text(job.output.summary, json.dumps(summary, indent=1) + "\n")
