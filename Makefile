# Every target is one command that also works by hand. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup serve boxlite test check lint format types openapi clients bench lock audit sbom

PYTHON := .venv/bin/python
SBOM := dist/bulkhead.cdx.json

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing, tests included
	scripts/install --tests

serve: ## Run the service (as root)
	scripts/serve

boxlite: ## A real BoxLite server with real microVMs, no KVM needed (as root; the first time takes 8 minutes)
	deploy/boxlite/serve

test: ## Everything that CI runs: lint, format, types, all tests
	scripts/test

check: setup lint types ## Before a commit: lint, types, unit and contract tests; no root, less than a minute
	$(PYTHON) -m pytest -m "not boxes" --numprocesses=auto --dist=worksteal tests/unit tests/contract

lint: ## Style and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: ## Format the code, and repair what ruff can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types: ## mypy, strict
	$(PYTHON) -m mypy

openapi: ## Write openapi.yaml from the code
	$(PYTHON) scripts/openapi

clients: ## Clients for Python, TypeScript, Go and Java, into clients/ (the first time takes minutes)
	scripts/clients

lock: ## Write requirements/*.txt anew: newest versions that fit, with their hashes
	$(PYTHON) scripts/lock --upgrade
	scripts/clients --lock

audit: ## Compare the locked packages with a database of known vulnerabilities, where one can be reached
	$(PYTHON) scripts/audit

sbom: ## What a service consists of, as CycloneDX: dist/bulkhead.cdx.json
	mkdir -p $(dir $(SBOM))
	.venv/bin/cyclonedx-py requirements requirements/runtime.txt --pyproject pyproject.toml --output-reproducible \
		--output-file $(SBOM)

bench: ## Compare with bubblewrap and a bare spawn (as root; takes minutes)
	$(PYTHON) -m benchmarks
