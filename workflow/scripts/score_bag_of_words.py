"""Scores the floor of every task: a bag of words, and always saying the most frequent label."""

import json

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.data.bag_of_words import bag_of_words_score, constant_predictions
    from finegates.suite.models.sources import read_table
    from finegates.suite.runs.metrics import GlueMetric, score

    tier = configured_tier(job.config)
    scores: dict[str, dict[str, float]] = {}
    for task in tier.tasks:
        train, validation = (read_table(tier, task, split) for split in ("train", "validation"))
        references = validation["label"].to_numpy()
        for name, predictions in (
            ("score", bag_of_words_score(train, validation, task)),
            ("majority_score", constant_predictions(train, validation, task)),
        ):
            metrics = GlueMetric(task).compute(predictions=predictions, references=references)
            scores.setdefault(task, {})[name] = score(task, metrics)
        print(task, scores[task], flush=True)
    write_text(job.output[0], json.dumps(scores, indent=1) + "\n")
