"""Pretrains the smoke tier's encoder, with its tokenizer, on the generated language."""

import json
from pathlib import Path

from finegates.job import job_log, seconds_since_start

job = snakemake
with job_log(job.log[0]):
    from finegates.files import write_text
    from finegates.pretrain import pretrain
    from finegates.schema import ModelSource
    from finegates.seeds import derive_seed
    from finegates.tasks.language import generate_corpus
    from finegates.tasks.tokenizer import train_tokenizer

    startup = seconds_since_start()
    settings = ModelSource(**job.params.settings).pretraining
    corpus = generate_corpus(settings.documents, derive_seed("pretraining", "corpus"))
    tokenizer = train_tokenizer(corpus, max_length=settings.max_length)
    pretrain(
        corpus,
        tokenizer,
        settings,
        seed=derive_seed("pretraining", "encoder"),
        folder=Path(job.output.model).parent,
    )
    summary = {
        "documents": len(corpus),
        "vocabulary": len(tokenizer),
        "startup_s": startup,
        "wall_s": seconds_since_start(),
    }
    write_text(job.output.summary, json.dumps(summary, indent=1) + "\n")
