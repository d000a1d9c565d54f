# make serve: the server with its dashboard, on the embedded model.   make test: the tests.
# Both install what they need into .venv by themselves; only Python 3.11+, make, g++ and pip are asked of the machine.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BUILD  := pyproject.toml CMakeLists.txt $(wildcard csrc/*.cpp csrc/*/*)
ARGS   ?=

# An editable install maps module names to files, so a new file needs a new install: the list of files is a
# prerequisite whose date changes only when the list does.
FILES  := $(VENV)/.files

.PHONY: FORCE serve test test-long parity test-sanitized test-emulated fuzz install dev bench bench-all lint format docs pictures clean

serve: install
	$(BIN)/python -m moesaic serve $(ARGS)

test: dev
	$(BIN)/python -m pytest $(ARGS)

# The exhaustive forms of what `make test` samples (about half an hour).
test-long: dev
	MOESAIC_LONG=1 $(BIN)/python -m pytest tests/unit/test_scheduler_machine.py --timeout 0 $(ARGS)

# Every architecture against transformers, of which `make test` runs a sample; what is measured is written to
# docs/models.md and to the table behind `moesaic models` (a quarter of an hour).
PARITY_LOG := build/parity.jsonl
parity: dev
	@mkdir -p build && rm -f $(PARITY_LOG)
	MOESAIC_PARITY_LOG=$(PARITY_LOG) $(BIN)/python -m pytest tests/parity -m "parity_full or not parity_full" $(ARGS)
	$(BIN)/python tools/make_models.py $(PARITY_LOG)

# The kernels' tests against libraries built with AddressSanitizer and UBSan.
SANITIZED := build/sanitized
test-sanitized: dev
	@mkdir -p $(SANITIZED)
	cmake -S . -B $(SANITIZED) -DMOESAIC_SANITIZE=address,undefined > $(SANITIZED).log || { cat $(SANITIZED).log; exit 1; }
	cmake --build $(SANITIZED) --parallel 2
	MOESAIC_CPU_LIBRARIES=$(abspath $(SANITIZED)) LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(BIN)/python -m pytest tests/kernels -k "cpu or backends or ops" --timeout 0 $(ARGS)

# The kernels' tests with AVX-512 emulated (libsimde-dev), on machines that do not have it.
EMULATED := build/emulated
test-emulated: dev
	@mkdir -p $(EMULATED)
	cmake -S . -B $(EMULATED) -DMOESAIC_EMULATE_AVX512=ON > $(EMULATED).log || { cat $(EMULATED).log; exit 1; }
	cmake --build $(EMULATED) --parallel 2
	MOESAIC_CPU_LIBRARIES=$(abspath $(EMULATED)) MOESAIC_EMULATED_ISAS=1 \
	  $(BIN)/python -m pytest tests/kernels -k avx512 --timeout 0 $(ARGS)

# 10,000 mutated checkpoints that are to be served (half an hour on two cores), and 2,000 on which the tools around
# checkpoints are used; `make test` runs samples. One alone by its number: make fuzz ARGS="--only 123".
fuzz: dev
	$(BIN)/python -m tests.fuzz.run $(ARGS)
	$(BIN)/python -m tests.fuzz.run --way tools $(ARGS)

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moesaic needs Python 3.11 or newer: try make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(FILES): FORCE | $(BIN)/python
	@find moesaic -name '*.py' | sort > $@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(VENV)/.installed: $(FILES) $(BUILD)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(FILES) $(BUILD)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

bench: install
	$(BIN)/python -m moesaic bench latency $(ARGS)
	$(BIN)/python -m moesaic bench throughput $(ARGS)
	$(BIN)/python -m moesaic bench overhead $(ARGS)

# All that docs/performance.md quotes, on the checkpoints in MODELS, and each bar against it (benchmarks/README.md).
MODELS ?= .bench
bench-all: dev
	$(BIN)/python -m benchmarks.run_all $(MODELS) $(ARGS)
	$(BIN)/python -m benchmarks.plots build/bench.jsonl docs/images

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/reference.md is made from the docstrings and flags, the tree of docs/operate/tuning.md from that of `moesaic advise`.
docs: dev
	$(BIN)/python tools/make_reference.py
	$(BIN)/python tools/make_tuning.py
	$(BIN)/python tools/make_board.py

# The dashboard's pictures in docs/images, of a real server in a headless Chromium.
pictures: dev
	$(BIN)/python -m tests.browser.pictures docs/images

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
