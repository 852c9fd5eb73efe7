# On a machine without a GPU, torch without its CUDA packages (several GB) comes from
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install
PYTHON ?= python3
ifneq ($(filter 3.%,$(PYTHON)),)
  override PYTHON := python$(PYTHON)
endif
# sh leaves a tilde after RESULTS= as it is.
override RESULTS := $(patsubst ~/%,$(HOME)/%,$(RESULTS))

.PHONY: help install quick test lint docs fuzz data-imdb data-iwslt data-ptb download-glove \
  bench gpu-check reproduce-all report wheelhouse lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# A second make waits: it would take the first one's unfinished installation for an interrupted one.
install:  ## set up .venv, PYTHON=python3 (Python 3.11, 3.12 or 3.13)
	@$$(command -v flock >/dev/null && echo flock Makefile) $(MAKE) --silent .venv/installed

quick: install  ## the main job on small generated data, on CPU, within 10 minutes
	.venv/bin/python scripts/quick.py

test: install  ## run the tests
	.venv/bin/python -m pytest

lint: install  ## check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# qrnn.onnx imports onnxscript, which the lock has for Python before 3.13 alone.
docs: install  ## the API reference, out of the docstrings, into build/docs
	.venv/bin/python -m pdoc --docformat google -o build/docs qrnn qrnn.layers qrnn.decoder \
	  qrnn.functional qrnn.pooling.operator qrnn.torchqrnn qrnn.convert qrnn.allennlp qrnn.joeynmt \
	  $$(.venv/bin/python -c 'import onnxscript' 2>/dev/null && echo qrnn.onnx)

fuzz: install  ## random calls of everything public, CASES=100000
	QRNN_FUZZ_CASES=$(or $(CASES),100000) .venv/bin/python -m pytest tests/test_fuzz.py

data-imdb: install  ## download and prepare IMDb, MIRROR=folder or URL prefix with the archive
	.venv/bin/python scripts/imdb.py $(if $(MIRROR),--mirror "$(MIRROR)")

data-iwslt: install  ## the same for IWSLT 2016 German-English; LOWER=1 lower-cases all of it
	.venv/bin/python scripts/iwslt.py $(if $(MIRROR),--mirror "$(MIRROR)") $(if $(filter-out 0,$(LOWER)),--lower)

data-ptb: install  ## the same for the Penn Treebank
	.venv/bin/python scripts/ptb.py $(if $(MIRROR),--mirror "$(MIRROR)")

download-glove: install  ## word vectors for IMDb, SET=glove.840B.300d or another (data/README.md)
	.venv/bin/python scripts/vectors.py $(if $(SET),--set "$(SET)") $(if $(MIRROR),--mirror "$(MIRROR)")

bench: install  ## compare the speed with nn.LSTM, into RESULTS=reports/results
	.venv/bin/python scripts/benchmark.py $(if $(RESULTS),--results "$(RESULTS)")

# No installation: a GPU machine may have its own torch, and no network. The tests run side by side
# where there is pytest-xdist.
gpu-check:  ## on a GPU: all CUDA tests, then the benchmarks; RESULTS=folder for the records
	@export PYTHONPATH=".$${PYTHONPATH:+:$$PYTHONPATH}"; python=$$([ -x .venv/bin/python ] && echo .venv/bin/python || echo $(PYTHON)); \
	status=0; several=$$($$python -c 'import xdist; print("-n 8")' 2>/dev/null); \
	$$python -m pytest -rs $$several tests/test_gpu.py || status=1; \
	$$python scripts/benchmark.py --device cuda $(if $(RESULTS),--results "$(RESULTS)") || status=1; \
	exit $$status

# Everything is in scripts/reproduce.py: what the variables mean, what is done before what.
reproduce-all: install  ## the whole replication; DRY_RUN=1 shows the plan (README.md: variables)
	.venv/bin/python scripts/reproduce.py $(if $(ONLY),--only "$(ONLY)") \
	  $(if $(PROFILE),--profile "$(PROFILE)") $(if $(SEEDS),--seeds "$(SEEDS)") \
	  $(if $(MIRROR),--mirror "$(MIRROR)") $(if $(VECTORS),--vectors "$(VECTORS)") \
	  $(if $(filter-out 0,$(LOWER)),--lower) $(if $(RESULTS),--results "$(RESULTS)") \
	  $(if $(filter-out 0,$(DRY_RUN)),--dry-run)

report: install  ## render README.md's tables and reports/ from reports/results, or RESULTS' report
	.venv/bin/python scripts/report.py $(if $(RESULTS),--results "$(RESULTS)")

wheelhouse: install  ## wheels for a machine without network: PYTHON=3.12, HAVE=its pip freeze, SPLIT=MiB
	.venv/bin/python scripts/wheelhouse.py $(if $(filter-out file,$(origin PYTHON)),--python "$(PYTHON)") \
	  $(if $(EXTRAS),--extras "$(EXTRAS)") $(if $(HAVE),--have "$(HAVE)") $(if $(SPLIT),--split "$(SPLIT)")

# An interrupted installation is repeated from scratch: pip takes a half-installed package for whole.
# --no-warn-conflicts: allennlp's metadata wants torch < 1.13 and other old versions, see setup.py.
.venv/installed: requirements.lock setup.py $(wildcard qrnn/startup/qrnn_startup.*)
	@if [ -e .venv/unfinished ]; then rm -rf .venv; fi
	@[ -e .venv ] || "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "the experiments need Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1)." \
	    "Name another one: make install PYTHON=python3.11" >&2; exit 1; }
	@mkdir -p .venv && touch .venv/unfinished
	@[ -e .venv/bin/python ] || "$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --no-warn-conflicts -r requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps allennlp==2.10.1
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@mv .venv/unfinished $@

# Chosen among the tested versions, the rest is the newest. A torch that is not named exactly may
# pull another build; transformers 4.49 is the last one with all that allennlp imports; protobuf
# because joeynmt, which shares the environment, wants < 3.21. No onnx for Python 3.13 works with
# that protobuf.
CHOSEN = torch==2.13.0 transformers==4.49.0 protobuf==3.20.3

lock:  ## resolve the version ranges in setup.py anew, into requirements.lock
	@venv=$$(mktemp -d) && trap 'rm -rf "$$venv"' EXIT && "$(PYTHON)" -m venv "$$venv" && \
	"$$venv/bin/python" -m pip install $(CHOSEN) '.[allennlp,cpu,docs,joeynmt,onnx,scripts,test]' && \
	"$$venv/bin/python" -m pip freeze --all --exclude pip --exclude qrnn > "$$venv/frozen" && \
	{ echo '# The exact versions that experiments are reproduced with, for Python 3.11 to 3.13.' && \
	  echo '# Made by `make lock` from the ranges in setup.py: do not edit. allennlp itself is not here' && \
	  echo '# (see setup.py), nor are the CUDA packages that torch brings where it has them.' && \
	  sed -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d' -e '/^torch==/s/+.*//' \
	    -e '/^onnx/s/$$/; python_version < "3.13"/' "$$venv/frozen"; \
	} > "$$venv/lock" && mv "$$venv/lock" requirements.lock

clean:  ## remove what builds and tools leave behind; keeps .venv, data and runs
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find qrnn scripts tests -name __pycache__ -prune -exec rm -rf {} +
