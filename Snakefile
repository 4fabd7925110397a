# Reproduces every table and figure of a tier: snakemake --cores 8 all
#
# The tier is a configuration file: `--config tier=local` takes config/local.yaml, and
# `--config tier=some/file.yaml` any other. Results land in the folder that the file names.

from pathlib import Path

from snakemake.exceptions import WorkflowError

from finegates.config import ConfigError, load_tier
from finegates.provenance import code_digest
from finegates.sources import ModelError, data_files, model_folder
from finegates.tasks.glue import DataError


def tier_file(name):
    return name if name.endswith((".yaml", ".yml")) else f"config/{name}.yaml"


TIER_FILE = tier_file(str(config.get("tier", "smoke")))
try:
    TIER = load_tier(TIER_FILE, "config/experiments")
    DATA_FILES = [str(path) for path in data_files(TIER)]
    MODEL_FOLDER = model_folder(TIER)
except (ConfigError, DataError, ModelError) as error:
    raise WorkflowError(str(error))

RESULTS = TIER.results
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


include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"


rule all:
    default_target: True
    input:
        RECORDS,


rule runs:
    input:
        RECORDS,
