# Reproduces every table and figure of a tier: snakemake --cores 8 all
#
# The tier is a configuration file: `--config tier=local` takes config/local.yaml, and
# `--config tier=some/file.yaml` takes any other; `tasks=cola,rte` runs a part of it. Results are
# written to the folder that the file names.

import os
import re
from pathlib import Path

from snakemake.exceptions import WorkflowError

from finegates.suite.config.load import ConfigError, configured_tier
from finegates.suite.config.searched import contender_of, searched_tier
from finegates.suite.config.dependencies import (
    encoder_settings,
    fetch_settings,
    floor_settings,
    inference_settings,
    language_settings,
    llama_step_settings,
    probe_settings,
    pruning_settings,
    run_settings,
    study_times_settings,
    text_run_settings,
    text_settings,
    time_budget_settings,
    tokenizer_settings,
    toy_settings,
    training_benchmark_settings,
)
from finegates.suite.jobs.lock import LockError, check_writable, hold
from finegates.suite.jobs.provenance import code_digest
from finegates.suite.jobs.terminal import show_jobs
from finegates.suite.runs.predictions import expected_predictions
from finegates.suite.models.fetch import FILES as CHECKPOINT_FILES, fetched_folder, is_fetched
from finegates.suite.models.sources import SPLITS, ModelError, data_files, model_folder
from finegates.suite.config.tasks import TASKS, DataError
from finegates.suite.config.tier_files import check_folder
from finegates.suite.tables.wording import text_words_of, words_of

try:
    TIER = configured_tier(config, workflow.configfiles)
    check_folder(TIER.tier, TIER.results)
    DATA_FILES = [str(path) for path in data_files(TIER)]
    MODEL_FOLDER = model_folder(TIER)
    # Checked here, because Snakemake's own message is only that outputs are protected.
    check_writable(TIER.results)
except (ConfigError, DataError, LockError, ModelError) as error:
    # SystemExit prints one line; Snakemake would print a WorkflowError on several lines.
    raise SystemExit(f"error: {error}") from None

RESULTS = TIER.results
show_jobs(workflow, RESULTS, TIER.tier)
# Inherited by jobs, which print to logs, where progress bars are noise.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
METHODS = list(TIER.methods)
RECORDS = expand(
    f"{RESULTS}/runs/{{task}}/{{method}}/seed{{seed}}.json",
    task=TIER.tasks,
    method=METHODS,
    seed=TIER.seeds,
)


wildcard_constraints:
    task="[a-z0-9]+",
    method=r"[A-Za-z0-9_.-]+",
    seed=r"\d+",


include: "workflow/rules/resources.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/benchmark.smk"


if TIER.theory:

    include: "workflow/rules/theory.smk"


if TIER.studies:

    include: "workflow/rules/studies.smk"


if TIER.llama:

    include: "workflow/rules/llama_runs.smk"
    include: "workflow/rules/llama.smk"


include: "workflow/rules/claims.smk"


# Replaces Snakemake's own lock, which a kill leaves behind (profiles/default turns it off).
onstart:
    try:
        hold(RESULTS, shared=config.get("lock") == "shared")
    except LockError as error:
        raise WorkflowError(str(error))


rule all:
    default_target: True
    input:
        rules.tabulate_glue.output,
        rules.draw_tradeoff.output,
        rules.draw_gates.output,
        THEORY_RESULTS if TIER.theory else [],
        TIMINGS,
        rules.tabulate_cost.output,
        rules.tabulate_method_cost.output,
        RATES,
        rules.audit_claims.output,
        rules.write_report.output,
        LLAMA_RESULTS if TIER.llama else [],
        STUDY_RESULTS if TIER.studies else [],


# Trains all models without making tables.
rule runs:
    input:
        TRIALS,
        RECORDS,
        STUDY_RECORDS,


include: "workflow/rules/publish.smk"
