# make demo   sets up and runs the built-in contest in about 3 minutes: train, test, score, result.txt
# make test   sets up and runs the tests: about five minutes on two cores
# make lint   ruff, mypy, the rules of who may import whom, and the documentation site
# make bench  every CPU benchmark; SUITE=FILE.npz for those that want a feature suite

PYTHON ?= python3
VENV ?= .venv
SUITE ?= $(wildcard ../shared/features/caltech65_4shot.npz)
BIN = $(VENV)/bin

.PHONY: about demo test lint bench clean

demo: about $(VENV)/ready
	$(BIN)/python train.py --demo
	$(BIN)/python test.py --demo
	@echo
	@echo "Next: the contest         $(BIN)/python train.py --data Dataset"
	@echo "      your own pictures   $(BIN)/python train.py --data pictures   (a folder for each class)"
	@echo "      Python              from jclip_fewshot import FewShotClassifier   (docs/classifier.md)"

about:
	@echo "The demo takes about 3 minutes the first time, with installing and building; afterwards about a minute."

# two files at a time; Ctrl-C is timed, so it goes alone
TIMED = tests/cli/test_interrupt.py
test: $(VENV)/ready
	$(PIP) --editable '.[test,onnx]'
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore $(TIMED)
	$(BIN)/python -m pytest $(TIMED)

lint: $(VENV)/ready
	$(PIP) --editable '.[lint,docs]'
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest tests/test_imports.py tests/test_words.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

bench: $(VENV)/ready
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/encode.py --quick
	$(BIN)/python benchmarks/decode.py --images 200 --files 20000
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/views.py
	$(BIN)/python benchmarks/encoders.py
	$(if $(SUITE),,@echo "no feature suite: make bench SUITE=FILE.npz runs four more")
	$(if $(SUITE),$(BIN)/python benchmarks/dirichlet.py $(SUITE))
	$(if $(SUITE),$(BIN)/python benchmarks/ensemble.py $(SUITE) --ceiling)
	$(if $(SUITE),$(BIN)/python benchmarks/refinement.py $(SUITE))
	$(if $(SUITE),$(BIN)/python benchmarks/selection.py $(SUITE))

# pip's output is kept out of the way unless it fails. Jittor comes alone, without its numpy<2 (see pyproject.toml);
# numpy comes as a wheel or not at all.
PIP = "$(BIN)/python" -m pip install --quiet --disable-pip-version-check --only-binary numpy
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("error: $(PYTHON) is \
	Python %d.%d; Python 3.10 to 3.13 is served: make PYTHON=python3.12" % v)'
	@echo "Setting up $(VENV): pip installs the packages, usually within a minute"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps jittor==1.3.11.0
	$(PIP) --editable '.[test,report]'
	touch $@

clean:
	@if [ -f "$(VENV)/ready" ]; then rm -rf "$(VENV)"; fi
	rm -rf .cache
	@for folder in demo demo-*; do if [ -f $$folder/complete.txt ]; then rm -rf $$folder; fi; done
	@if [ -e runs ] || [ -e result.txt ]; then echo "runs/ and result.txt are yours and stay; delete them yourself"; fi
