# make demo   sets up and runs the built-in contest: train, test, score, result.txt
# make test   sets up and runs the tests
# make bench  every CPU benchmark

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test bench clean

demo: $(VENV)/ready
	$(BIN)/python train.py --demo
	$(BIN)/python test.py --demo

test: $(VENV)/ready
	$(BIN)/python -m pytest

bench: $(VENV)/ready
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/encode.py --quick
	$(BIN)/python benchmarks/decode.py --images 200 --files 20000
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/dirichlet.py

# pip's output is kept out of the way unless it fails
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,report]'
	touch $@

clean:
	rm -rf $(VENV) .cache runs demo result.txt result.zip
