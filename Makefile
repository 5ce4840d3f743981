# Every target does its own set-up, so that any of them can be the first command after a clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: setup demo test test-slow test-portable acceptance sanitize lint types contracts clean

setup: $(VENV)/.ready

# torch comes first: the extension is built against it, and pip's isolated builds would fetch another.
$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch numpy "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/fastgrow demo --out runs/demo

test: lint types contracts
	$(PYTEST) -m "not slow and not acceptance"

# The tests that compute, under other machines' instructions and threads: a quarter of an hour on two
# cores; with PORTABLE=--few three minutes.
test-portable: setup
	$(BIN)/python tests/portable.py $(PORTABLE)

# With the checks that want the development data or a font, where those are there.
test-slow: setup
	$(PYTEST) -m "slow or acceptance"

# Only those checks; they fail, where `make test-slow` skips them, if something is missing.
acceptance: setup
	FASTGROW_ACCEPTANCE=1 $(PYTEST) -m acceptance

# The extension under AddressSanitizer and UBSan; status 77 where the compiler has neither.
sanitize: setup
	$(BIN)/python csrc/sanitize.py -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The types and the import contracts are checked on the installed layout, where kernels/ stands at
# fastgrow.kernels; an editable install only maps it there at run time.
.PHONY: build/installed
build/installed: setup
	rm -rf $@
	FASTGROW_BUILD_EXT=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $@ .

types: build/installed
	MYPYPATH=build/installed $(BIN)/mypy --config-file pyproject.toml -p fastgrow -p benchmarks

contracts: build/installed
	cd build/installed && $(abspath $(BIN))/lint-imports --config ../../pyproject.toml

clean:
	rm -rf build dist *.egg-info
