# The two commands of the README are `make demo` and `make test`; each sets up all that it needs.
PYTHON ?= python3
export HF_HUB_OFFLINE = 1
export TRL_EXPERIMENTAL_SILENCE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help demo test lint matrix trl docs bench clean

help:           ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

demo:           ## train a small language model with GRPO under RLDKCallback, offline, in under two minutes
	@py=$$($(PYTHON) scripts/env.py demo) && $$py examples/grpo_demo.py

test:           ## all tests on the newest TRL
	@bash scripts/chromium.sh
	@py=$$($(PYTHON) scripts/env.py test) && OMP_NUM_THREADS=1 $$py -m pytest $(ARGS)

lint:           ## ruff and mypy
	@py=$$($(PYTHON) scripts/env.py test) && $$py -m ruff check . && $$py -m mypy

matrix:         ## the trainers' tests on the other versions of environments/matrix.json
	@$(PYTHON) scripts/matrix.py

trl:            ## the same on any other TRL: make trl TRL=0.27.2 [TRANSFORMERS=4.57.6]
	@$(PYTHON) scripts/matrix.py $(TRL) $(TRANSFORMERS)

docs:           ## regenerate the generated pages
	@py=$$($(PYTHON) scripts/env.py test) && $$py scripts/docs.py

bench:          ## what a step, a load and the memory cost, against the floor
	@py=$$($(PYTHON) scripts/env.py test) && OMP_NUM_THREADS=1 $$py -m benchmarks.cost $(ARGS)

clean:          ## remove environments and what runs left behind
	rm -rf .venvs .pytest_cache .hypothesis .mypy_cache .ruff_cache build rldk_demo_logs
