# make demo   a real Slurm on this machine: collect, train, evaluate (6 minutes on two cores)
# make test   everything that CI runs
.PHONY: setup demo test lint lock schemas clean

setup:
	@./setup.sh

demo: setup
	@.venv/bin/python -m launch.demo

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	.venv/bin/python -m pytest

# Pins every package; environment.yml installs the same lock (a test holds that).
lock:
	uv pip compile -q --python-version 3.11 --extra dev --no-annotate --no-header --no-emit-index-url \
	    pyproject.toml -o requirements.lock

# What the stage programs accept, for launch.preflight (a test holds that it is theirs).
schemas: setup
	@.venv/bin/python -m gilbreth_phase0.schemas launch/stages

clean:
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache
