"""Scores the floor of every task: a bag of words, and always saying the most frequent label."""

import json

from finegates.job import job_log

job = snakemake
with job_log(job.log[0]):
    from finegates.config import load_tier
    from finegates.metrics import GlueMetric, score
    from finegates.record import write_text
    from finegates.sources import read_table
    from finegates.tasks.bag_of_words import bag_of_words_score, constant_predictions

    tier = load_tier(job.params.tier_file, "config/experiments")
    scores: dict[str, dict[str, float]] = {"bag of words": {}, "most frequent label": {}}
    for task in tier.tasks:
        train, validation = (read_table(tier, task, split) for split in ("train", "validation"))
        references = validation["label"].to_numpy()
        for name, predictions in (
            ("bag of words", bag_of_words_score(train, validation, task)),
            ("most frequent label", constant_predictions(train, validation, task)),
        ):
            metrics = GlueMetric(task).compute(predictions=predictions, references=references)
            scores[name][task] = score(task, metrics)
            print(task, name, scores[name][task], flush=True)
    write_text(job.output[0], json.dumps(scores, indent=1) + "\n")
