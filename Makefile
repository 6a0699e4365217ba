# `make demo` and `make test` do all the set-up themselves, in .venv; a second call does not repeat it.
PYTHON ?= python3
VENV ?= .venv
# Passed to the installation of torch alone, e.g. TORCH_PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
# on a machine without a GPU, where PyPI's torch would bring CUDA along.
TORCH_PIP_ARGS ?=
PYTEST_ARGS ?=
# Test files run at a time.
TEST_WORKERS ?= 2
# The demo: questions asked, the seed of its pictures, where it works.
NUM ?= 200
SEED ?= 0
DEMO_DIR ?= runs/demo
CHAOS_ROUNDS ?= 200
# Where the proof works; QUICK=1: a small one.
PROVE_DIR ?= runs/prove
QUICK ?=
CHAOS_SEED ?= 0
# Where `make docs` writes.
SITE ?= site
# bench-gpu without a GPU: DRY_RUN=1.
DRY_RUN ?=
# What was skipped, and is held against tests/allowed_skips.txt.
TEST_RESULTS ?= .pytest_cache/test.xml
FAMILY_RESULTS ?= .pytest_cache/families.xml
EMULATED_RESULTS ?= .pytest_cache/emulated.xml
OLDEST_RESULTS ?= .pytest_cache/oldest.xml
NEWEST_RESULTS ?= .pytest_cache/newest.xml
TRAINER_RESULTS ?= .pytest_cache/trainers.xml
VLLM_RESULTS ?= .pytest_cache/vllm.xml
BROWSER_RESULTS ?= .pytest_cache/browser.xml
SLURM_RESULTS ?= .pytest_cache/slurm.xml
# Made-up data: so many times more than in `make test`, and another each day.
FUZZ_TIMES ?= 10
FUZZ_SEED ?= $(shell date +%Y%m%d)

# With VENV empty, nothing is set up or fetched: $(PYTHON) runs the checkout as it is, with the packages that it has.
ifeq ($(strip $(VENV)),)
BIN := $(dir $(shell command -v $(PYTHON)))
STAMP :=
RUN = PYTHONPATH=$(abspath engine):$(abspath kernels)$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON)
else
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN = $(BIN)/python
endif
# Packages of the families' tests alone, beside site-packages.
FAMILIES := $(or $(VENV),.venv)/families
# Other releases than those of launch/constraints.txt, beside site-packages.
VERSIONS := $(or $(VENV),.venv)/versions
# Environments of trainers, which ask for other versions than the engine.
TRAINERS := $(or $(VENV),.venv)/trainers
TRAINER_STAMPS := $(addprefix $(TRAINERS)/,ms-swift/.installed llama-factory/.installed)
# An environment of vLLM's, for the tests of --sampler vllm.
VLLM := $(or $(VENV),.venv)/vllm
# An environment of the documentation's.
DOCS := $(or $(VENV),.venv)/docs
CORES := $(shell nproc)
# No test asks the network for anything. Compiled code is kept, whatever the environment says of that: the tests' files
# alone take each worker 8 seconds to compile, and each target collects all of them.
TEST_ENV := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PYTHONDONTWRITEBYTECODE=
# By file, since the tests of a file share what is costly to make.
PYTEST = $(BIN)/pytest -q -rs --durations=10 -n $(TEST_WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-models demo-areas run test test-families test-oldest test-newest test-trainers test-vllm \
	test-emulated-gpu test-browser fuzz test-slow test-long test-slurm chaos prove prove-loop prove-size prove-exports \
	prove-pairs prove-plan docs lint bench bench-vllm bench-gpu clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## install into .venv, at the versions of launch/constraints.txt

ifneq ($(STAMP),)
$(STAMP): setup.cfg pyproject.toml launch/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: Python 3.11 or newer is needed, and $(PYTHON) is `$(PYTHON) --version 2>&1`;" \
			"name another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
# torch first and alone, so that TORCH_PIP_ARGS can choose its index and nothing else's.
	$(BIN)/pip install --quiet -c launch/constraints.txt $(TORCH_PIP_ARGS) torch
	$(BIN)/pip install --quiet -c launch/constraints.txt -e '.[zero3,test,lint]'
	touch $@
endif

demo: $(STAMP) ## pictures, two ranks of the engine, and how much less the chosen answers hallucinate
	rm -rf $(DEMO_DIR)/work
	$(BIN)/python -m data_engine.demo questions $(DEMO_DIR)/questions.parquet --num $(NUM) --seed $(SEED)
	PYTHON=$(BIN)/python NUM_PROCESSES=2 ACCELERATE_CONFIG=launch/accelerate/cpu.yaml \
		launch/run_engine.sh --config configs/demo.yaml \
		--dataset_path $(DEMO_DIR)/questions.parquet --work_dir $(DEMO_DIR)/work
	$(BIN)/python -m data_engine.demo judge $(DEMO_DIR)/work $(DEMO_DIR)/questions.parquet

demo-models: $(STAMP) ## train the demo's two tiny models again (minutes)
	$(BIN)/python -m data_engine.demo.train engine/data_engine/demo/checkpoints

demo-areas: $(STAMP) ## train a tiny judge (minutes), and how well each source of reward tells true answers from false
	rm -rf $(DEMO_DIR)/areas
	$(BIN)/python -m data_engine.demo questions $(DEMO_DIR)/questions.parquet --num $(NUM) --seed $(SEED)
	test -f $(DEMO_DIR)/judge/config.json || $(BIN)/python -m data_engine.demo.train_yesno $(DEMO_DIR)/judge
	$(BIN)/python -m data_engine run --config configs/demo.yaml --rewards implicit,contrast,yesno \
		--yesno_model_path $(DEMO_DIR)/judge --stop_after_stage 1 \
		--dataset_path $(DEMO_DIR)/questions.parquet --work_dir $(DEMO_DIR)/areas
	$(BIN)/python -m data_engine.demo areas $(DEMO_DIR)/areas $(DEMO_DIR)/questions.parquet

run: $(STAMP) ## a real job: make run CONFIG=configs/x.yaml [NUM_PROCESSES=n] [ARGS="--limit 100"]
	@test -n "$(CONFIG)" || { echo 'make: which job? make run CONFIG=configs/llava-1.5-7b.yaml' >&2; exit 2; }
	PYTHON=$(BIN)/python $(if $(NUM_PROCESSES),NUM_PROCESSES=$(NUM_PROCESSES)) \
		launch/run_engine.sh --config $(CONFIG) $(ARGS)

# One more than two processors: these tests wait for processes that they start. Those of test-slow also ask how soon ranks
# notice something, for which they are not crowded.
test: TEST_WORKERS = 3
test: $(STAMP) ## the test suite (5 to 10 minutes on two cores)
	$(TEST_ENV) $(PYTEST) --junitxml=$(TEST_RESULTS) $(PYTEST_ARGS)
	$(BIN)/python tests/check_skips.py $(TEST_RESULTS)

# Without the packages the tests of some families are skipped, which the last line then fails for.
$(FAMILIES): tests/families/packages.txt $(STAMP)
	rm -rf $@
	$(BIN)/pip install --quiet --no-deps --target $@ -r $< && touch $@ || { \
		rm -rf $@; echo "make: the packages of $< could not be fetched: families that need them are skipped" >&2; }

test-families: $(STAMP) $(FAMILIES) ## every family of models, tiny, against stock transformers (10 to 14 minutes on two cores)
	PYTHONPATH=$(abspath $(FAMILIES)) $(TEST_ENV) $(PYTEST) --junitxml=$(FAMILY_RESULTS) \
		-m "not slow and not gpu and not releases" tests/families $(PYTEST_ARGS)
	$(BIN)/python tests/check_skips.py $(FAMILY_RESULTS)

$(VERSIONS)/%/.installed: tests/versions/%.txt $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --target $(@D) -r $<
	touch $@

# Tests of the code that uses models, files of data and pictures. One worker each: `make -j2 test-oldest test-newest`.
test-oldest test-newest: TEST_WORKERS = 1
VERSION_TESTS := $(addprefix tests/,models sampling scoring questions exports preferences rewards)
# $(call TEST_VERSION,list,results,options): the families apart, since the other tests must not see torchvision, whose
# compiled parts do not load here. Both run, whatever comes of the first.
define TEST_VERSION
	rm -f $(2) $(2:.xml=-families.xml)
	failed=0; \
	PYTHONPATH=$(abspath $(VERSIONS)/$(1)) $(TEST_ENV) \
		$(PYTEST) --junitxml=$(2) $(3) $(VERSION_TESTS) $(PYTEST_ARGS) || failed=1; \
	PYTHONPATH=$(abspath $(VERSIONS)/$(1)):$(abspath $(FAMILIES)) $(TEST_ENV) \
		$(PYTEST) --junitxml=$(2:.xml=-families.xml) $(3) -m releases tests/families $(PYTEST_ARGS) || failed=1; \
	$(BIN)/python tests/check_skips.py $(2) $(2:.xml=-families.xml) && exit $$failed
endef

# Old releases warn of what newer ones beside them deprecate.
test-oldest: $(STAMP) $(FAMILIES) $(VERSIONS)/oldest/.installed ## models, data and pictures with the oldest releases that setup.cfg admits (4 minutes)
	$(call TEST_VERSION,oldest,$(OLDEST_RESULTS),-W ignore::DeprecationWarning -W ignore::FutureWarning)

test-newest: $(STAMP) $(FAMILIES) $(VERSIONS)/newest/.installed ## the same with newer releases than make setup installs (4 minutes)
	$(call TEST_VERSION,newest,$(NEWEST_RESULTS))

# torch first, which brings what it needs on this machine; all else is listed whole. Most of it is never imported, so
# nothing is compiled in advance. Without an environment its tests are skipped, which the last line then fails for.
$(TRAINERS)/%/.installed: tests/trainers/%.txt | $(STAMP)
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D) && \
		$(@D)/bin/pip install --quiet --no-compile -c $< $(TORCH_PIP_ARGS) torch && \
		$(@D)/bin/pip install --quiet --no-compile --no-deps -r $< && touch $@ || { \
		rm -rf $(@D); echo "make: the packages of $< could not be installed: the tests of $* are skipped" >&2; }

test-trainers: $(STAMP) $(TRAINER_STAMPS) ## ms-swift and LLaMA-Factory train a step on their exports (8 minutes)
	MS_SWIFT_PYTHON=$(abspath $(TRAINERS)/ms-swift/bin/python) \
		LLAMA_FACTORY_PYTHON=$(abspath $(TRAINERS)/llama-factory/bin/python) \
		$(TEST_ENV) $(PYTEST) --junitxml=$(TRAINER_RESULTS) -m trainers tests/trainers $(PYTEST_ARGS)
	$(BIN)/python tests/check_skips.py $(TRAINER_RESULTS)

# torchvision's wheel brings compiled parts that do not load beside torch for CPUs; what asks for them is taken out, and
# its Python is what processors need.
$(VLLM)/.installed: tests/by_vllm/packages.txt | $(STAMP)
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D) && \
		$(@D)/bin/pip install --quiet --no-compile -c $< $(TORCH_PIP_ARGS) torch && \
		$(@D)/bin/pip install --quiet --no-compile --no-deps -r $< && \
		sed -i -e '/^    _autograd_registrations,$$/d' -e '/^    _meta_registrations,$$/d' \
			$(@D)/lib/python*/site-packages/torchvision/__init__.py && touch $@ || { \
		rm -rf $(@D); echo "make: the packages of $< could not be installed: the tests of vLLM are skipped" >&2; }

test-vllm: $(STAMP) $(VLLM)/.installed ## vLLM on the CPU draws the answers of whole runs, killed and rerun (5 minutes)
	VLLM_PYTHON=$(abspath $(VLLM)/bin/python) $(TEST_ENV) \
		$(PYTEST) --junitxml=$(VLLM_RESULTS) -m vllm tests/by_vllm $(PYTEST_ARGS)
	$(BIN)/python tests/check_skips.py $(VLLM_RESULTS)

test-browser: $(STAMP) docs ## the report and the documentation in a real browser: needs chromium and chromium-driver (apt-get install)
	$(TEST_ENV) $(BIN)/pytest -q -rs --durations=10 --junitxml=$(BROWSER_RESULTS) -m browser tests/browser $(PYTEST_ARGS)
	$(BIN)/python tests/check_skips.py $(BROWSER_RESULTS)

fuzz: $(STAMP) ## made-up datasets, answers and flags, more and others than in make test (FUZZ_SEED=n: these again)
	FUZZ_TIMES=$(FUZZ_TIMES) $(TEST_ENV) $(PYTEST) --hypothesis-seed=$(FUZZ_SEED) \
		tests/project/test_fuzz.py tests/preferences/test_words.py tests/commands/test_config.py $(PYTEST_ARGS)

# What is written for CUDA runs there by the CPU, emulated: streams, graphs, copies that do not wait, kernels by their
# formulas. Left out is what asks whether a card's own products keep bits, at a size that takes a card. Of each family,
# rows that are refilled and the scores of two questions (all: PYTEST_ARGS="-k ''"). Not by file: one has a third of the
# work.
EMULATED = graphs merged_on_cuda on_cuda prompts_on_cuda release_on_cuda towers_on_cuda
EMULATED_CHOICE = not families and not wide and not bits_of_each and not comes_out_the_same or refilled \
	or log_probs and (two or system)
test-emulated-gpu: $(STAMP) $(FAMILIES) ## the code for CUDA on a GPU that the CPU emulates (needs g++)
	FAMILY_DEVICE=cuda PYTHONPATH=$(abspath tests):$(abspath $(FAMILIES)) $(TEST_ENV) $(PYTEST) -p emulated_cuda.plugin \
		--junitxml=$(EMULATED_RESULTS) -m "not slow and not releases" -k "$(EMULATED_CHOICE)" tests/emulated_cuda \
		$(EMULATED:%=tests/gpu/test_%.py) tests/families/test_family_sampling.py tests/families/test_family_scoring.py \
		--dist worksteal $(PYTEST_ARGS)
	$(BIN)/python tests/check_skips.py $(EMULATED_RESULTS)

test-slow: $(STAMP) ## the longer proofs: kills, shards, worlds of 1, 2 and 3 ranks
	$(TEST_ENV) $(PYTEST) -m "slow and not long" $(PYTEST_ARGS)

test-long: $(STAMP) ## more cases of the longer proofs, which CI leaves out (15 minutes)
	$(TEST_ENV) $(PYTEST) -m long $(PYTEST_ARGS)

test-slurm: $(STAMP) ## a real SLURM of two nodes on this machine: needs slurm-wlm and munge (apt-get install)
	$(TEST_ENV) $(BIN)/pytest -q -rs --junitxml=$(SLURM_RESULTS) -m slurm $(PYTEST_ARGS)

chaos: $(STAMP) ## rounds of kills, signals, failing disks and lost units; each must end in the same dataset
	rm -rf runs/chaos && mkdir -p runs/chaos
	OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python tests/distributed/chaos.py runs/chaos \
		--rounds $(CHAOS_ROUNDS) --seed $(CHAOS_SEED)

prove: $(STAMP) ## that training on the data works, with controls (an hour or two; QUICK=1: minutes); goes on where it was stopped
	$(BIN)/python tests/prove/prove.py $(PROVE_DIR)$(if $(QUICK),-quick --quick, --page docs)

prove-loop: $(STAMP) ## rounds of answers, pairs and training in the demo's world, by data-engine loop and TRL (20 minutes); ARGS="--rounds 3"
	$(TEST_ENV) $(BIN)/python tests/prove/loop.py runs/prove-loop $(ARGS)

prove-size: $(STAMP) ## stage 2 at 50,000 and 200,000 questions: minutes and memory (half an hour, 12 GB of disk)
	$(TEST_ENV) $(BIN)/python tests/size_proof.py 50000 200000 $(ARGS)

prove-plan: $(STAMP) ## the hours that validate --measure tells against real runs, demo and bench size (half an hour); ARGS="--only demo"
	$(TEST_ENV) $(BIN)/python tests/plan_proof.py runs/prove-plan $(ARGS)

prove-exports: $(STAMP) ## 100,000 pairs into each format of data-engine export: minutes and memory (an hour, 20 GB of disk)
	$(TEST_ENV) $(BIN)/python tests/export_size_proof.py 48000 $(ARGS)

prove-pairs: $(STAMP) ## data-engine pairs at 100,000 questions by each strategy: seconds and memory (half an hour, 3 GB of disk)
	$(TEST_ENV) $(BIN)/python tests/pairs_proof.py 100000 $(ARGS)

# Not with .venv's packages, of which some are pinned for the engine's sake.
$(DOCS)/.installed: setup.cfg launch/constraints.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -c launch/constraints.txt mkdocs-material
	touch $@

docs: $(DOCS)/.installed ## docs/ as one site, site/index.html, and whether all its links lead somewhere
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict --site-dir $(SITE)
	$(PYTHON) tests/docs_site.py $(SITE)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP) ## the engine against stock transformers, as ratios (half an hour; ARGS="--quick": minutes)
	$(RUN) -m data_engine bench $(ARGS)

bench-vllm: $(STAMP) $(VLLM)/.installed ## the engine's sampling against vLLM's, on the CPU (ARGS="--quick": minutes)
	PYTHONPATH=$(abspath engine):$(abspath kernels) OMP_NUM_THREADS=$(CORES) VLLM_LOGGING_LEVEL=WARNING $(TEST_ENV) \
		$(VLLM)/bin/python -m data_engine bench --vllm --shape qwen2.5-vl $(ARGS)

# Each part by itself, or several: make gpu-kernels gpu-engine. One that fails costs the others nothing, and fails the
# whole at its end. DRY_RUN=1 runs them at tiny shapes on the CPU, to see before a GPU is there that they run.
ifneq ($(filter gpu-%,$(MAKECMDGOALS)),)
MAKEFLAGS += --keep-going
endif
GPU_PARTS := gpu-kernels gpu-engine gpu-layers gpu-engine-compiled gpu-engine-large-vocabulary gpu-engine-vllm gpu-tests
.PHONY: $(GPU_PARTS)
GPU_BENCH = $(TEST_ENV) $(RUN) -m data_engine bench $(if $(DRY_RUN),--device cpu --tiny,--device cuda --shape $(1)) $(2) $(ARGS)
bench-gpu: $(STAMP) ## on a GPU: the kernels, the engine at the size of LLaVA-1.5-7B, vLLM, the tests (an hour by estimate; ARGS="--rounds 1")
	$(RUN) kernels/bench/needs.py
	$(MAKE) $(if $(DRY_RUN),$(filter-out %-compiled %-vocabulary,$(GPU_PARTS)),$(GPU_PARTS))

gpu-kernels: $(STAMP)
	$(TEST_ENV) $(RUN) kernels/bench/run.py $(if $(DRY_RUN),--tiny,--sweep)

gpu-layers: $(STAMP)
	$(TEST_ENV) $(RUN) kernels/bench/layers.py $(if $(DRY_RUN),--tiny)

# Rows are kept full for long only with many questions: 245 rows hold the answers to 25 at once.
LONG_QUEUE = $(if $(DRY_RUN),,--drawn_questions 196)
gpu-engine: $(STAMP)
	$(call GPU_BENCH,llava-1.5-7b,--vocab 32064 --alone $(LONG_QUEUE))

gpu-engine-compiled: $(STAMP)
	$(call GPU_BENCH,llava-1.5-7b,--vocab 32064 --alone --compile_layers $(LONG_QUEUE))

gpu-engine-large-vocabulary: $(STAMP)
	$(call GPU_BENCH,llava-1.5-7b,--vocab 152064)

gpu-engine-vllm: $(STAMP)
	$(call GPU_BENCH,qwen2.5-vl-7b,--vocab 152064 --vllm-if-there)

gpu-tests: $(STAMP)
	$(TEST_ENV) $(RUN) -m pytest -q -rs -m gpu tests/gpu $(if $(DRY_RUN),--collect-only) $(PYTEST_ARGS)

clean: ## remove what make made: .venv, caches, the demo's run (never another run)
	rm -rf $(VENV) $(DEMO_DIR) $(SITE) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
