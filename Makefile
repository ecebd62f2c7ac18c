PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EVALUATION := $(VENV)/.installed
TESTS := $(VENV)/.installed-test
UV := VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt
# Data paths of the quickstart are relative to this folder; nothing is fetched from a hub. Two processes, two cores.
OFFLINE := env -u COMPASS_DATA_CACHE HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: install demo simulate check site test test-slow bench pictures families quickstart-model clean

install: $(TESTS)

$(EVALUATION): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt uv torch  # pip's own configuration says which build of torch
	$(UV) -e '.[opencompass]'
	touch $@

$(TESTS): $(EVALUATION)
	$(UV) -e '.[test]'
	touch $@

# Vanilla and WDMoE on the quickstart's model; fails if a task failed or a cell is empty.
demo: $(EVALUATION)
	$(OFFLINE) $(BIN)/opencompass eval_configs/eval_quickstart.py -w outputs/quickstart
	@$(BIN)/wdmoe report "$$(ls -d outputs/quickstart/*/ | tail -n 1)" > /dev/null

# Table II, ours next to the paper's, on synthetic routing, and Figures 5 to 8 (docs/reconstruction.md).
simulate: $(EVALUATION)
	rm -rf outputs/simulate
	$(OFFLINE) $(BIN)/wdmoe simulate --out outputs/simulate

check: $(TESTS) site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/house.py

# The pages of docs/ as build/site/index.html; fails on a dead link. The variable keeps the theme from
# announcing its successor.
site: $(TESTS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Two processes, each on one thread (tests/conftest.py); a file's tests share what they made. With
# WDMOE_EXAMPLES_FACTOR=20 property tests try 20 times as many random cases.
test: $(TESTS)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(TESTS)
	$(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile

bench: $(TESTS)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

# The pictures of README and docs, from the last runs of the quickstart and of all policies (made where there is none).
pictures: $(TESTS)
	$(OFFLINE) $(BIN)/python docs/make_pictures.py

# What the plugin can do with each MoE family of the installed transformers, tried on tiny models.
families: $(TESTS)
	$(BIN)/python -m tests.routing.families

# Trains the quickstart's model again (half an hour on two cores) and writes its held-out items.
quickstart-model: $(EVALUATION)
	$(BIN)/python quickstart/tasks.py
	$(BIN)/python quickstart/train.py

clean:
	rm -rf $(VENV) build *.egg-info outputs tmp
