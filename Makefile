# All commands run in .venv, which is made from $(PYTHON), version 3.10 or newer.

PYTHON ?= python3
PORT ?= 8000
FAULTS ?= 0
ADMIN ?= 0
ARGS ?=
PROCESSES ?= 4

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet install
LOCK = requirements/dev.txt
INSTALL = $(PIP) --constraint $(LOCK) --editable .
FLASK = $(BIN)/python -m flask --app example_app
RANDOM_TEXT = $(BIN)/python -c 'import secrets; print(secrets.token_urlsafe())'

.PHONY: help demo serve test test-flask-sqlalchemy docs bench lock clean

help:
	@echo 'make demo    start the example in three workers, and see who holds the connections'
	@echo 'make serve   keep the example running at http://127.0.0.1:$(PORT)/'
	@echo '             (PORT=8001 another port, FAULTS=1 with views that misbehave,'
	@echo '             ADMIN=1 with an admin page)'
	@echo "make test    run the tests (ARGS='-k airports' passes options to pytest,"
	@echo '             PROCESSES=0 runs them in one process)'
	@echo 'make test-flask-sqlalchemy'
	@echo "             run Flask-SQLAlchemy's own tests on flask_scopedsession.flask_sqlalchemy"
	@echo 'make docs    build the documentation, and say where it is'
	@echo "make bench   measure it beside its peers (ARGS=--quick for a few minutes' run)"
	@echo "make lock    write the versions of all packages that 'make' installs"
	@echo '             (ARGS=--upgrade takes the newest) to $(LOCK)'
	@echo 'make clean   remove .venv, caches, and instance/ with the flight log'
	@echo
	@echo 'PYTHON=python3.12 chooses the Python for .venv.'

demo: $(VENV)/.example
	@$(BIN)/python -m example_app.demo

serve: $(VENV)/.example
	@$(FLASK) import-airports
	@echo
	@echo 'Open       http://127.0.0.1:$(PORT)/'
	@if [ '$(FAULTS)' = 1 ]; then \
	    echo 'Misbehave  http://127.0.0.1:$(PORT)/faults/'; fi
	@if [ '$(ADMIN)' = 1 ]; then \
	    echo 'Manage     http://127.0.0.1:$(PORT)/admin/'; fi
	@echo 'Watch      http://127.0.0.1:$(PORT)/pools/'
	@echo 'Look       in a second terminal, in this folder:'
	@echo '           $(BIN)/flask --app example_app pool-status'
	@echo '           $(BIN)/flask --app example_app session-status --watch'
	@echo 'Stop       Ctrl-C'
	@echo
	@export FLASK_SECRET_KEY="$${FLASK_SECRET_KEY:-$$($(RANDOM_TEXT))}"; \
	    EXAMPLE_FAULTS='$(FAULTS)' EXAMPLE_ADMIN='$(ADMIN)' $(BIN)/python -m gunicorn \
	    --config example_app/gunicorn_conf.py --bind 127.0.0.1:$(PORT) \
	    'example_app:create_app()'

# Many tests wait for servers, so four processes keep two cores busy. Hundreds of
# processes import the package, so its bytecode is kept in any case.
test: $(VENV)/.tests
	@echo 'Running $(if $(ARGS),the tests that ARGS selects,all tests: about nine minutes on two cores).'
	@echo 'They start servers on this machine (gunicorn, Celery, PostgreSQL and others)'
	@echo 'and stop them again.'
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

# With the SQLAlchemy that is installed; 'tox' has an environment for each version.
test-flask-sqlalchemy: $(VENV)/.tests
	@$(BIN)/python .ci/flask_sqlalchemy_tests.py

docs: $(VENV)/.docs
	@$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo 'The pages are at file://$(CURDIR)/docs/_build/html/index.html'
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then \
	    $(BIN)/python -m webbrowser -t 'file://$(CURDIR)/docs/_build/html/index.html'; fi

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks --json benchmarks/results/latest.json $(ARGS)

# For all Pythons and systems at once. Without ARGS=--upgrade, versions that still satisfy
# pyproject.toml stay.
lock: $(VENV)/.made
	@$(PIP) --constraint $(LOCK) uv
	@$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.10 \
	    --no-emit-index-url --no-annotate --custom-compile-command 'make lock' \
	    --group dev pyproject.toml --output-file $(LOCK) $(ARGS)

clean:
	rm -rf $(VENV) instance build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The files below mark finished steps, which a second run skips.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not that." >&2; \
	    echo "Name one that is: make PYTHON=python3.12 ..." >&2; \
	    exit 1; }
	@echo 'Making $(VENV) ...'
	@$(PYTHON) -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "'$(PYTHON) -m venv' failed. Where Python is in several packages" >&2; \
	    echo "(as on Debian), it needs the one called python3-venv." >&2; \
	    exit 1; }
	@$(PIP) --upgrade pip
	@touch $@

$(VENV)/.example: $(VENV)/.made pyproject.toml $(LOCK)
	@echo 'Installing the package and what the example needs ...'
	@$(INSTALL) --group example
	@touch $@

$(VENV)/.tests: $(VENV)/.made pyproject.toml $(LOCK)
	@echo 'Installing the package and what the tests need ...'
	@$(INSTALL) --group tests --group clients
	@touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml $(LOCK)
	@echo 'Installing the package and what the documentation needs ...'
	@$(INSTALL) --group docs
	@touch $@

$(VENV)/.bench: $(VENV)/.made pyproject.toml $(LOCK)
	@echo 'Installing the package, its peers and what the benchmarks need ...'
	@$(INSTALL) --group bench
	@touch $@
