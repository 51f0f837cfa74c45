# make demo   set up, prepare the data, train three models for a few minutes, compare them, write some text
# make test   set up and run the tests
# make lint   check the code's form (ruff)
# make test-all   also every combination of the models' options (hours)
# Both work in a virtual environment in .venv that they make; PYTHON=... uses another interpreter to make it.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ARMS := baseline flat mixed

.PHONY: demo test test-all lint setup setup-dev

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

REQUIREMENTS := requirements.txt requirements-eval.txt

$(VENV)/.installed: $(REQUIREMENTS) | $(VENV)/bin/python
	@echo "installing the packages of $(REQUIREMENTS) into $(VENV); torch is large: this takes a minute or more"
	$(RUN) -m pip install -q --disable-pip-version-check $(REQUIREMENTS:%=-r %)
	touch $@

$(VENV)/.installed-dev: $(REQUIREMENTS) requirements-dev.txt | $(VENV)/bin/python
	@echo "installing the packages of $(REQUIREMENTS) requirements-dev.txt into $(VENV); torch is large: this takes two minutes or more"
	$(RUN) -m pip install -q --disable-pip-version-check $(REQUIREMENTS:%=-r %) -r requirements-dev.txt
	touch $@ $(VENV)/.installed

demo: setup
	test -f data/shakespeare_char/meta.json || $(RUN) data/shakespeare_char/prepare.py
	for arm in $(ARMS); do $(RUN) train.py config/demo_$$arm.py --overwrite=True || exit $$?; done
	$(RUN) plot_runs.py $(ARMS:%=out/demo_%) --out=out/demo.png
	@echo; echo "The mixed-curvature model, after 'ROMEO:':"
	$(RUN) sample.py --out_dir=out/demo_mixed --start="ROMEO:" --max_new_tokens=300

test: setup-dev
	$(RUN) -m pytest -q

lint: setup-dev
	$(VENV)/bin/ruff check .

test-all: setup-dev
	$(RUN) -m pytest -q -m "exhaustive or not exhaustive"
