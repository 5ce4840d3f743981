# Every target runs the setup it needs, so that any of them can be the first command after a clone.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.12
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
OLDEST := $(abspath .venv-oldest)/bin/python

.PHONY: setup demo test docs test-slow test-portable acceptance sanitize lint types contracts clean oldest gpu-bundle

setup: $(VENV)/.ready

# torch is installed first: the extension is built against it, and pip's isolated builds would
# download another one.
$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch numpy "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/fastgrow demo --out runs/demo

test: lint types contracts
	$(PYTEST) -m "not slow and not acceptance"

# The documentation site, in build/site; any warning, such as a broken link, is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

# The numerical tests with the instruction sets and thread counts of other machines: a quarter of an
# hour on two cores; with PORTABLE=--few three minutes.
test-portable: setup
	$(BIN)/python tests/portable.py $(PORTABLE)

# The slow tests, and the checks that need the development data or a font, if these are available.
test-slow: setup
	$(PYTEST) -m "slow or acceptance"

# Only these checks; if data are missing they fail, whereas `make test-slow` skips them.
acceptance: setup
	FASTGROW_ACCEPTANCE=1 $(PYTEST) -m acceptance

# Tests of the extension with AddressSanitizer and UBSan; status 77 if the compiler has neither.
sanitize: setup
	$(BIN)/python csrc/sanitize.py -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The types and the import contracts are checked on the installed layout, in which kernels/ is the
# folder fastgrow/kernels; an editable install only maps it at run time.
.PHONY: build/installed
build/installed: setup
	rm -rf $@
	FASTGROW_BUILD_EXT=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $@ .

types: build/installed
	MYPYPATH=build/installed $(BIN)/mypy --config-file pyproject.toml -p fastgrow -p benchmarks

contracts: build/installed
	cd build/installed && $(abspath $(BIN))/lint-imports --config ../../pyproject.toml

# Tests with the oldest supported torch, Triton and other packages, and a newer Python: both
# extensions, all tests of kernels, builds, operations and patches, and the quick tests of the others.
# It uses a copy of the repository, because the extension in the working copy is that of `make setup`.
# Needs nvcc, 10 GB and three quarters of an hour on two cores; not part of CI.
OLDEST_TESTS ?= tests/kernels tests/packaging tests/ops tests/interop
OLDEST_QUICK ?= $(filter-out $(OLDEST_TESTS),$(patsubst %/,%,$(wildcard tests/*/)))
oldest: .venv-oldest/.ready
	rm -rf build/oldest && mkdir -p build/oldest
	git ls-files -z --cached --others --exclude-standard | \
		tar --create --null --files-from=- --ignore-failed-read | tar --extract --directory build/oldest
	cd build/oldest && FASTGROW_BUILD_EXT=cuda $(OLDEST) -m pip install --quiet --no-deps --no-build-isolation -e .
	cd build/oldest && $(OLDEST) -c "import fastgrow._native as n; assert n.CPU.loaded and n.CUDA.loaded, (n.CPU, n.CUDA)"
	# One folder at a time, because their conftest.py files are modules of the same name.
	cd build/oldest && failed=0; for tests in $(OLDEST_TESTS); do \
		$(OLDEST) -m pytest $$tests || failed=1; done; \
		for tests in $(OLDEST_QUICK); do \
		$(OLDEST) -m pytest -m "not slow and not acceptance" $$tests || failed=1; done; exit $$failed

.venv-oldest/.ready: constraints-oldest.txt pyproject.toml
	$(OLDEST_PYTHON) -m venv .venv-oldest
	$(OLDEST) -m pip install --quiet -c constraints-oldest.txt torch numpy "setuptools>=77" wheel ninja
	FASTGROW_BUILD_EXT=0 $(OLDEST) -m pip install --quiet -c constraints-oldest.txt --no-build-isolation ".[dev]"
	$(OLDEST) -m pip uninstall --quiet --yes fastgrow
	touch $@

# Packages and files for a GPU machine without a network: docs/gpu.md. REHEARSE=1 also runs the
# bundle here, on the CPU.
gpu-bundle: .venv-oldest/.ready
	$(OLDEST) scripts/gpu_bundle.py build/gpu-bundle $(if $(REHEARSE),--rehearse)

clean:
	rm -rf build dist *.egg-info
