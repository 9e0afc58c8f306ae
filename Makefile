# Every target works on a fresh machine with Python 3.11 or newer (with venv) and make.
#   make demo    boot the bundled guest kernel, print its VM exits by reason
#   make test    run the tests            make check   lint, format, types
#   make bench   print the figures        make guests  rebuild the bundled guests (gcc, binutils)
#   make clean   remove what make built
# PYTHON=python3.12 make demo chooses the interpreter; JOBS=4 the number of test processes.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help demo test check bench guests clean

help:
	@sed -n '2,6s/^# \{0,1\}//p' Makefile

# The stamps hold what is installed; a changed pyproject.toml installs again.
$(VENV)/.installed-cli: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vmx needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "cannot create $(VENV): $(PYTHON) lacks the venv module (Debian: apt install python3-venv)"; exit 1; }
	@echo "installing vmx into $(VENV) ..."
	@$(PIP) install -e '.[cli]'
	@touch $@

$(VENV)/.installed-all: $(VENV)/.installed-cli
	@echo "installing the tools for tests and checks into $(VENV) ..."
	@$(PIP) install -e '.[cli,test,check]'
	@touch $@

# The command line gives the bundled guest its work; it powers off after it.
demo: $(VENV)/.installed-cli
	@$(BIN)/python -m vmx run --append "run=hello,primes,counter,exits,ps,mem"

# Compiling first, in one place with a progress bar, keeps the test processes from compiling the same units.
test: $(VENV)/.installed-all
	@$(BIN)/python -m vmx warmup
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

check: $(VENV)/.installed-all
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

bench: $(VENV)/.installed-cli
	@$(BIN)/python -m bench

guests:
	@$(MAKE) -C guests

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -rf $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
