# make demo   set everything up, train on the bundled digits with 2 Ray workers, score a folder with the result
# make test   set everything up and run the tests, without the slow ones
# make test-all  also run the slow tests;  make test-long  run those that take many minutes each
# make docs   build the documentation as a site: build/docs/index.html
# make check  lint and types;  make clean  remove what these commands made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETTINGS := pyproject.toml constraints.txt
# Two processes share the tests, because many of them wait for other processes most of the time. Of the slow ones, those with
# several nodes run one after the other in one process (tests/conftest.py).
QUICK := -m "not slow and not long" -n 2 --dist loadfile --no-loadscope-reorder
SLOW := -m "slow and not long" -n 2 --dist loadgroup

.PHONY: demo test test-all test-long docs check clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: $(VENV)/.run
	@echo "== training on the 5,000 bundled MNIST images with 2 Ray workers"
	$(BIN)/python jobs/train.py --data mnist5k --workers 2 --epochs 12 --out demo/run
	@echo "== writing the 500 held-out digits as PNG files"
	$(BIN)/python jobs/write_digits.py --data mnist5k --out demo/digits
	@echo "== scoring the folder with the trained model"
	$(BIN)/python jobs/score.py demo/digits --model demo/run --out demo/table --overwrite
	$(BIN)/mnist-ray verify demo/table
	@echo "== open demo/run/report.html and demo/table/report.html in a browser; add --workers 2 to score on Ray"

test: $(VENV)/.test
	$(BIN)/python -m pytest $(QUICK) $(TESTS)

test-all: test
	$(BIN)/python -m pytest $(SLOW) $(TESTS) || [ $$? = 5 ]  # 5: none of these tests is slow

test-long: $(VENV)/.test
	$(BIN)/python -m pytest -m long $(TESTS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --quiet --nitpicky --fail-on-warning --keep-going docs build/docs
	@echo "== open build/docs/index.html in a browser"

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is `$(PYTHON) -V 2>&1`; this project needs Python 3.11 to 3.13: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "== making $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp file per set of extras. If it is newer than the settings, nothing is installed.
$(VENV)/.run $(VENV)/.test $(VENV)/.docs $(VENV)/.dev: $(VENV)/.%: $(VENV)/.venv $(SETTINGS)
	@echo "== installing mnist-ray into $(VENV) (PyTorch is several GB: minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.$(if $(filter-out run,$*),[$*])'
	@touch $@
