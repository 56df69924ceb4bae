# The commands of the repository. `make demo` and `make test` set up everything that they need.
.PHONY: help setup demo test test-host test-boards test-all lint bench clean

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## .venv and system packages, said aloud
	@.ci/setup

demo: setup ## the whole story on this machine: boards, broker, partners, rounds, baselines
	@.venv/bin/fedmote demo $(ARGS)

test: setup ## everything that fits ten minutes on two cores
	@echo "two halves side by side; each prints when it ends, after about four and eight minutes on two cores"
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line test-host test-boards

# The two halves of `make test`, side by side: each takes one core.
test-host:
	.venv/bin/python -m pytest -m "not slow" host converters

test-boards:
	.venv/bin/python -m pytest -m "not slow" hil firmware_tests

test-all: setup ## the long ones too
	.venv/bin/python -m pytest

lint: setup ## static checks: schema tables, ruff, mypy, import layers, clang-format, cppcheck
	@.ci/lint

bench: setup ## instruction counts of kernels and head in the emulator, beside those of others
	.venv/bin/fedmote bench kernels
	.venv/bin/fedmote bench head

clean: ## what builds and runs left behind
	rm -rf build dist demo-out .pytest_cache .mypy_cache .ruff_cache
