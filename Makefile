# `make demo` and `make test` are all that a newcomer needs; `make help` lists the rest.

# The first Python on the path that the host side can run on.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
# Where to find torch beside the default package index, such as PyTorch's CPU wheels.
TORCH_INDEX ?=
# Processes that run the suite side by side, each with a file of tests at a time.
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

# Everything that runs from here ships with the repository: a download would be a mistake.
export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test adversary test-arm lint format docs wheel clean
.DELETE_ON_ERROR:

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: $(INSTALLED) ## install, then evaluate the demo phone agent, export it, run, validate and serve the bundle
	@echo '== demo: the phone agent that ships with edgeglm, in PyTorch, on 50 of its held-out screens'
	$(BIN)/python -m edgeglm.export.demo.evaluate --limit 50
	@echo '== demo: its bundle for this computer, each module measured against the original'
	$(BIN)/edgeglm export --target cpu --output build/demo
	$(BIN)/edgeglm verify build/demo
	@echo '== demo: one of the held-out screens, answered from the bundle, without PyTorch'
	$(BIN)/edgeglm run build/demo --image export/demo/data/evaluation/0001.webp --prompt 'Select OK'
	@echo '== demo: the bundle against the original, on all of the held-out screens'
	$(BIN)/edgeglm validate build/demo --accuracy-drop 2% --report build/demo.html
	@echo '== demo: one goal on a simulated phone, performed by the served bundle as Open-AutoGLM would ask it'
	$(BIN)/python -m edgeglm.export.demo.episodes --bundle build/demo --goals 1 --steps
	@echo '== demo: the report, with every module, drop and wrong screen: build/demo.html'

test: $(INSTALLED) ## install, then run the test suite
	@echo '== test: the whole suite'
	@start=$$(date +%s); $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder; status=$$?; \
		seconds=$$(($$(date +%s) - start)); \
		echo "== test: took $$((seconds / 60)) min $$((seconds % 60)) s"; exit $$status

SECONDS ?= 60
adversary: $(INSTALLED) ## the fuzzers, SECONDS=60 each, and the table of what they found
	@echo '== adversary: damages, mutations, kills and streams, $(SECONDS) s each'
	$(BIN)/python -m pytest tests/adversary --seconds $(SECONDS)

test-arm: $(INSTALLED) ## the demo's bundle on emulated 64-bit Arm, INT8 on an emulated Haswell (a network the first time)
	@echo '== test-arm: the same answers as here, under qemu'
	$(BIN)/python -m pytest tests/arm
	@echo '== test-arm: INT8 products and modules on an x86 CPU without VNNI, under qemu'
	$(BIN)/python -m pytest tests/export/quantize/test_products.py tests/export/test_exact_modules.py

lint: $(INSTALLED) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## build docs/ as a site into build/site; a warning is an error
	$(BIN)/zensical build --strict

wheel: $(INSTALLED) ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation --outdir dist

clean: ## remove the environment and everything built
	rm -rf .venv .cache build dist edgeglm.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { \
		echo 'edgeglm: Python 3.11 or later: not found on the path; install it, or run make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'edgeglm: $(PYTHON): is not Python 3.11 or later; run make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'edgeglm: $(PYTHON): has no venv module; run apt install python3-venv' >&2; exit 2; }
	@echo '== install: edgeglm with its host side and tools into $(VENV) (once; a few minutes, about 3 GB)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[export,search,cluster,serve,tensorrt,qnn,tflite,dev]'
	@touch $@
