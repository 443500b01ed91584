# Everything runs in a virtual environment, one for each Python: .venv-3.11, ...
# PYTHON names the interpreter; by default the first of python3, python3.13, 3.12 and 3.11 that
# runs and is 3.11 or newer.
.DELETE_ON_ERROR:

answers = $(shell $(1) -c 'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null)
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(call answers,$(p))))
ifeq ($(PYTHON),)
$(error numpyro_neb needs Python 3.11 or newer: none was found. Install one, or name it: make demo PYTHON=...)
endif

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
RUN := $(VENV)/bin/python
OUT ?= demo-output

.PHONY: demo test lint fast fast64 slow docs site lowest dist benchmarks clean

demo: $(VENV)/demo
	$(RUN) -m numpyro_neb demo --out $(OUT)

test: lint fast slow

lint: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

# The doctests are among the fast ones. FAST holds further options of pytest.
FAST ?=
fast: $(VENV)/test
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow" $(FAST)

# The fast suite in float64, without the doctests, which show the digits of float32.
X64 ?= tests
fast64: $(VENV)/test
	JAX_ENABLE_X64=1 $(RUN) -m pytest -n 2 --dist worksteal -m "not slow" $(X64)

SLOW ?= slow
slow: $(VENV)/test
	$(RUN) -m pytest -n 2 --dist worksteal -m "$(SLOW)"

docs: $(VENV)/docs
	$(RUN) -m sphinx -W --keep-going -n -q -b html -c docs . build/site
	@echo "the site: build/site/index.html"

# Rebuilds the site and opens it in a headless Chromium, which must be installed.
site: $(VENV)/docs $(VENV)/test
	NEEDS_CHROMIUM=1 $(RUN) -m pytest tests/test_site.py

# The fast tests with the oldest dependencies that pyproject.toml allows; meant for Python 3.11.
lowest: .venv-lowest
	.venv-lowest/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

.venv-lowest: pyproject.toml
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet uv
	$@/bin/python -m uv pip install --quiet --python $@/bin/python --resolution lowest-direct \
		--editable '.[test]'
	touch $@

# sdist and wheel in dist/, checked, and the wheel installed alone. bash .ci/dist tries each Python.
dist:
	bash .ci/dist $(PYTHON)

# The peers PyTorch, BlackJAX, AShrink and npeb come with the extra bench.
benchmarks: $(VENV)/bench
	$(RUN) -m benchmarks.truth
	$(RUN) -m benchmarks.training
	$(RUN) -m benchmarks.training likelihood
	$(RUN) -m benchmarks.energies
	$(RUN) -m benchmarks.families
	$(RUN) -m benchmarks.walk
	$(RUN) -m benchmarks.models
	$(RUN) -m benchmarks.normal_means
	$(RUN) -m benchmarks.priors
	$(RUN) -m benchmarks.shrinkage
	$(RUN) -m benchmarks.sure
	$(RUN) -m benchmarks.sigma
	$(RUN) -m benchmarks.learned_prior
	$(RUN) -m benchmarks.two_stages
	$(RUN) -m benchmarks.inverse digits --draws 30
	$(RUN) -m benchmarks.inverse peers --images 30 --draws 24
	$(RUN) -m benchmarks.mixtures
	$(RUN) -m benchmarks.posterior_components
	$(RUN) -m benchmarks.memories
	$(RUN) -m benchmarks.nebula
	$(RUN) -m benchmarks.levels
	$(RUN) -m benchmarks.denoising
	$(RUN) -m benchmarks.chains
	$(RUN) -m benchmarks.manifold
	$(RUN) -m benchmarks.convolutions
	$(RUN) -m benchmarks.memory

$(VENV)/%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv-* build dist .pytest_cache .ruff_cache
