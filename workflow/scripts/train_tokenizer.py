"""Trains a tokenizer of the most frequent words of the training text."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import whole_folder
    from finegates.suite.config.load import configured_tier
    from finegates.suite.data.text import tokenizer_documents
    from finegates.suite.data.tokenizer import save_tokenizer, train_tokenizer

    tier = configured_tier(job.config)
    texts = tokenizer_documents(tier.llama.text, tier.results)
    words = job.params.settings["words"]
    tokenizer = train_tokenizer(texts, vocabulary=words, max_length=512)
    with whole_folder(Path(job.output.tokenizer[0]).parent) as folder:
        save_tokenizer(tokenizer, folder)
