# Needs Python 3.10 or newer and make; everything else goes into .venv. Another Python: `make test PYTHON=python3.12`.
# What pip is to do differently (an index with CPU wheels of torch, say) goes into PIP_ARGS or pip's own settings.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
FRAMEWORKS := .venv-frameworks
FRAMEWORKS_INSTALLED := $(FRAMEWORKS)/installed
WORKERS ?= 2

.PHONY: help demo test test-slow test-pythons faults fuzz kills gpu lint bench-trace bench-check bench-merge mutants docs clean

help:
	@echo "make demo         set up, then trace a pure bfloat16 GPT until the report stands on the screen"
	@echo "make test         set up, then lint, type check and test"
	@echo "make test-slow    set up the frameworks, then the tests that need them or minutes"
	@echo "make gpu          on a CUDA machine: the tests that need one and what a trace costs there, with the torch that PYTHON has"
	@echo "make test-pythons what needs no torch, on each Python that is installed, with the newest and oldest libraries"
	@echo "make faults       makes each function of the trace fail in turn, and says what that does to a program"
	@echo "make fuzz         100000 mutated inputs of each kind that precaudit reads"
	@echo "make kills        200 traced runs ended at random moments in every way"
	@echo "make lint         ruff and mypy alone"
	@echo "make bench-trace  step time under the trace, beside torch's own dispatch modes"
	@echo "make bench-check  checks eight libraries and training scripts: findings, CPU seconds and memory, beside ruff and TorchFix"
	@echo "make bench-merge  seconds and memory of merging 4096 rank files"
	@echo "make mutants      breaks clean programs in a hundred ways, and counts what each witness finds: hours; see docs/mutants.md"
	@echo "make docs         the documentation as a site, into site/: strict, without network once it is set up"
	@echo "make clean        remove the environments and what tools left behind"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is older than 3.10; say PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[test]"
	@touch $@

# The frameworks that people train with, beside everything that the tests need: a second environment, for the slow tests.
$(FRAMEWORKS_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[test,frameworks]"
	@touch $@

# 1 is the exit code of a trace with findings, which is what this one is for.
demo: $(INSTALLED)
	$(BIN)/precaudit trace fixtures/scripts/gpt_bf16_adamw.py || test $$? -eq 1

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

test-slow: $(FRAMEWORKS_INSTALLED)
	$(FRAMEWORKS)/bin/python -m pytest -n $(WORKERS) -m "slow and not gpu"

# The torch of this Python is the one that knows the machine's driver: it is used, and not installed anew. Where this
# Python is itself in a virtual environment it hands its packages on to no other one: their folders stand in a .pth.
# GPU_ARGS="--device cpu" tries the command out where there is no GPU.
gpu:
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	$(PYTHON) -c 'import sys; print(*(one for one in sys.path if one.endswith("-packages")), sep="\n")' > "$$(.venv-gpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e . pytest scikit-learn
	.venv-gpu/bin/python benchmarks/gpu.py $(GPU_ARGS)

test-pythons: $(INSTALLED)
	$(BIN)/python tests/pythons.py

faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faulting.py

fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz

kills: $(INSTALLED)
	$(BIN)/python benchmarks/kills.py

bench-trace: $(INSTALLED)
	$(BIN)/python benchmarks/trace.py

bench-check: $(INSTALLED)
	$(BIN)/python benchmarks/check.py

bench-merge: $(INSTALLED)
	$(BIN)/python benchmarks/merge.py

# SAMPLE="--sample 200 --seed 1" for a slice; a run that was stopped goes on where it was.
mutants: $(FRAMEWORKS_INSTALLED)
	PYTHONPATH=tests $(FRAMEWORKS)/bin/python -m mutants.matrix --report --survivors $(SAMPLE)

# A third environment, small: mkdocs-material and precaudit itself, whose rules, options and schema become pages.
.venv-docs/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[docs]"
	@touch $@

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) $(FRAMEWORKS) .venv-gpu .venv-pythons .venv-docs site .mypy_cache .ruff_cache .pytest_cache .hypothesis .precaudit .precaudit_cache dist build
