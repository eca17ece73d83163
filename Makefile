# `make demo` and `make test` set up everything they need: Python >= 3.11 and pip suffice.
PYTHON ?= python3
# Named first, so that no other dependency chooses a build of torch with CUDA.
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO := out/demo

.PHONY: demo test clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest

# The three commands on a few photographs: adapt the packaged student to ALIKED's answers on them,
# then evaluate it on sequences rendered from others.
demo: .venv/ready
	rm -rf $(DEMO)
	$(BIN)/python -m hfnet_distill.data.samples $(DEMO)/photographs
	$(BIN)/export-teacher --model aliked:n16 --images $(DEMO)/photographs/train \
		--store $(DEMO)/aliked.zarr
	$(BIN)/train-student --store $(DEMO)/aliked.zarr --images $(DEMO)/photographs/train \
		--output $(DEMO)/run --init default --epochs 8 --learning-rate 2e-4
	$(BIN)/evaluate --dataset hpatches --render $(DEMO)/photographs/test \
		--root $(DEMO)/sequences --sequences 4 \
		--model $(DEMO)/run --model default --model aliked:n16 --model sift --model orb \
		--output $(DEMO)/report

clean:
	rm -rf .venv $(DEMO)
