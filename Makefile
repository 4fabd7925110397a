# make help        lists the targets
# make reproduce   installs the pinned versions into .venv, then makes every table and figure
#
# Options, given as NAME=value after the target:
#   PYTHON=python3.12     the interpreter that .venv is made from (3.11 or newer)
#   CORES=4               how many cores to use; all of them by default
#   TIER=local            which tier to run or to clean; smoke by default
#   ARGS="-k gates -x"    further arguments for pytest or snakemake

PYTHON ?= python3
CORES ?= all
TIER ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := suite,local,onnx,test,lint,docs
# Twice quiet: errors only. An index that lacks a package is no news.
PIP_OPTIONS := -qq --disable-pip-version-check --no-input

# pytest-xdist calls "all cores" auto.
WORKERS = $(if $(filter all,$(CORES)),auto,$(CORES))

# Programs started by rules and tests find the tools of .venv first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Tiers by name; those with published runs; folders of results.
TIERS = $(basename $(notdir $(shell grep -l "^tier:" config/*.yaml)))
PUBLISHED = $(sort $(notdir $(patsubst %/runs,%,$(patsubst %/search,%,$(wildcard results/published/*/runs results/published/*/search)))))
MADE = $(filter-out published,$(notdir $(wildcard results/*)))
# For messages: the nearest of some names to TIER, and all of them.
nearest = $$("$(PYTHON)" finegates/suite/config/suggest.py "$(TIER)" $(1))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup reproduce restore test test-oldest test-system faults fuzz lint docs pictures \
  format clean update

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## install the pinned versions into .venv

# Without a stamp the last installation did not finish (or there was none): start from an empty
# environment. With an old one, bring the environment up to date.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null \
	  || { echo "make: no '$(PYTHON)' found; try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: Python 3.11 or newer is needed, '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1);" \
	            "try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if [ ! -f $(STAMP) ]; then \
	  echo "Making $(VENV) with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv --clear $(VENV); fi
	@rm -f $(STAMP)
	@echo "Installing pinned versions into $(VENV) (a few minutes the first time)"
	@# torch by itself and first, so that the build of the configured index, CPU or GPU, is kept.
	@pip() { $(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt "$$@"; }; \
	  { pip pip setuptools && pip torch && pip --no-build-isolation -e '.[$(EXTRAS)]'; } \
	  || { echo "make: the installation failed; make setup PIP_OPTIONS= shows all that pip says" >&2; \
	       exit 1; }
	@touch $(STAMP)

# Before anything is installed: a name that is misspelt.
.PHONY: known-tier
known-tier:
	@case "$(TIER)" in '' | *.yaml | *.yml) ;; *) [ -f "config/$(TIER).yaml" ] \
	  || { echo "make: no tier '$(TIER)'$(call nearest,$(TIERS));" \
	            "a file of your own: TIER=path/to/it.yaml" >&2; exit 1; } ;; esac

# Snakemake goes by dates: that a finished file has changed since, it does not see.
# Options that take several values come after the target: --config would swallow it.
reproduce: known-tier $(STAMP) ## make every table, figure and verdict [CORES, TIER, ARGS]
	$(BIN)/finegates verify $(TIER)
	$(BIN)/snakemake all --cores $(CORES) $(if $(TIER),--config tier=$(TIER)) $(ARGS)

restore: ## continue from the published results of a tier [TIER]
	@[ -n "$(TIER)" ] || { echo "make restore: name a published tier, for example" \
	  "make restore TIER=$(or $(filter local,$(PUBLISHED)),$(firstword $(PUBLISHED)))" >&2; exit 1; }
	@[ -n "$(filter $(TIER),$(PUBLISHED))" ] || { echo "make restore: no published results of a" \
	  "tier '$(TIER)'$(call nearest,$(PUBLISHED))" >&2; exit 1; }
	@[ ! -e "results/$(TIER)" ] || { echo "make restore: results/$(TIER) exists; make clean TIER=$(TIER) first" >&2; exit 1; }
	cp -R "results/published/$(TIER)" "results/$(TIER)"
	@# One date for all: a record that another one reads must not look newer than that one.
	@find "results/$(TIER)" -exec touch -r "results/$(TIER)" {} +

test: $(STAMP) ## run the tests; ARGS=--run-slow for all of them [CORES, ARGS]
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

# What they need in addition to Python, .ci/packages installs from Debian.
test-system: $(STAMP) ## run the tests that open a browser, start a Slurm, install the wheel [ARGS]
	@$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[browser,slurm,release]'
	$(BIN)/pytest -m "browser or cluster or install" --run-browser --run-cluster --run-install $(ARGS)

package: $(STAMP) ## build wheel and source distribution and check them: dist
	@$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[release]'
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# Published at once: it is about the workflow, not about a tier's runs.
faults: $(STAMP) ## kill, damage and starve the workflow; tabulate what comes of it (minutes)
	$(BIN)/python tests/faults/faults.py results/faults results/published/faults

fuzz: $(STAMP) ## give every reader of files many wrong ones and count: results/fuzz [CORES]
	@$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt atheris
	$(BIN)/python tests/fuzz/campaign.py results/fuzz $(if $(filter all,$(CORES)),$$(nproc),$(CORES))

lint: $(STAMP) ## check style, formatting, types and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation site, with search: docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

pictures: $(STAMP) ## draw the pictures of README and site again from the published tables
	for script in docs/pictures/*.py; do PYTHONPATH=. $(BIN)/python "$$script" || exit 1; done

format: $(STAMP) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

clean: ## remove results/<tier>, smoke by default; never results/published [TIER]
	@case "$(or $(TIER),smoke)" in \
	  published | .* | */* | *' '*) echo "make clean: '$(TIER)' is not a tier" >&2; exit 1 ;; esac
	@case " $(TIERS) $(MADE) " in *" $(or $(TIER),smoke) "*) ;; \
	  *) echo "make clean: no tier and no results are called" \
	          "'$(TIER)'$(call nearest,$(sort $(TIERS) $(MADE)))" >&2; exit 1 ;; esac
	rm -rf "results/$(or $(TIER),smoke)"

# The version of torch stays unless TORCH names another.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
update: $(STAMP) ## choose the newest versions and write constraints.txt [TORCH]
	$(BIN)/python .ci/update.py "$(TORCH)" constraints.txt
	@echo "Wrote constraints.txt; now run make lint test reproduce"

# A second environment next to .venv: the lower bounds of pyproject.toml, torch as pinned.
OLDEST := .venv-oldest
test-oldest: ## run the tests with the oldest supported versions; ARGS as of make test [CORES, ARGS]
	@[ -d $(OLDEST) ] || "$(PYTHON)" -m venv $(OLDEST)
	@pip() { $(OLDEST)/bin/python -m pip install $(PIP_OPTIONS) -c constraints-oldest.txt "$$@"; }; \
	  pip --upgrade pip setuptools && pip torch && pip --no-build-isolation -e '.[suite,onnx,test]'
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(or $(ARGS),--ignore=tests/workflow --ignore=tests/faults)
