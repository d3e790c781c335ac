# `make` or `make help` lists the targets. Settings: MANIFEST, STORE, ROOT, WORKERS, RUN, RECIPE, e.g.
#   make render features MANIFEST=demo STORE=stores/demo.zarr
MANIFEST ?= demo
STORE ?= stores/demo.zarr
RECIPE ?= demo
RUN ?= runs/demo
ROOT ?=
WORKERS ?=
PYTHON ?= python3

BIN := .venv/bin
READY := .venv/.ready
GL_PACKAGES := libegl1 libgl1 libopengl0 libgl1-mesa-dri
INSTALL_GL = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq $(GL_PACKAGES); } \
	|| echo "rendering needs these system packages: sudo apt-get install $(GL_PACKAGES)"
OPTIONS := --manifest $(MANIFEST) --store $(STORE) $(if $(ROOT),--root $(ROOT)) $(if $(WORKERS),--workers $(WORKERS))
# Status 3 says that shapes were set aside: reported, and no reason to stop what comes next.
STAGE = $(BIN)/recon-pipeline $(1) $(OPTIONS) || [ $$? -eq 3 ]
# Whole runs of tests stay with one process, which makes their shared stores once.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup doctor render features pretrain demo evaluate test test-fast soak lint docs wheel bench bench-kernels bench-pretrain gpu demo-teacher

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with everything pinned, and the system's GL libraries

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@for library in libEGL.so.1 libGL.so.1 libOpenGL.so.0; do ldconfig -p | grep -q $$library || $(INSTALL_GL); done
	@touch $(READY)

doctor: $(READY)  ## check packages, cores, memory, disk, processor, GL libraries, a test picture
	$(BIN)/recon-pipeline doctor

render: $(READY)  ## render the views of MANIFEST into STORE
	$(call STAGE,render)

features: $(READY)  ## embed views and words with the manifest's teachers into STORE
	$(call STAGE,features)

pretrain: $(READY)  ## train RECIPE on STORE into RUN
	$(BIN)/recon-train pretrain --recipe $(RECIPE) --store $(STORE) --run $(RUN)

demo: $(READY)  ## from nothing to runs/demo/report.html: data, features, training, probes
	$(call STAGE,all)
	$(BIN)/recon-train pretrain --recipe $(RECIPE) --store $(STORE) --run $(RUN) --overwrite
	$(BIN)/recon-train svm --store $(STORE) --run $(RUN)
	$(BIN)/recon-train zeroshot --store $(STORE) --run $(RUN)
	$(BIN)/recon-train report --store $(STORE) --run $(RUN)

evaluate: $(READY)  ## every protocol, small, from $(RUN) on $(STORE) into $(RUN)-evaluate, one table
	$(BIN)/recon-train svm --store $(STORE) --run $(RUN)
	$(BIN)/recon-train zeroshot --store $(STORE) --run $(RUN)
	for protocol in full linear mlp3 peft; do $(BIN)/recon-train finetune --store $(STORE) --from $(RUN) \
		--run $(RUN)-evaluate/$$protocol --recipe demo-finetune --protocol $$protocol --scratch || exit 1; done
	$(BIN)/recon-train fewshot --store $(STORE) --from $(RUN) --run $(RUN)-evaluate/fewshot --recipe demo-fewshot --folds 0-2 --scratch
	$(BIN)/recon-train partseg --store $(STORE) --from $(RUN) --run $(RUN)-evaluate/partseg --recipe demo-partseg
	$(BIN)/recon-train report --store $(STORE) --run $(RUN)
	$(BIN)/recon-train table $(RUN) $(RUN)-evaluate/* | tee $(RUN)-evaluate/table.md

test: $(READY)  ## the whole suite, on every core
	$(PYTEST)

test-fast: $(READY)  ## without the slow tests
	$(PYTEST) -m "not slow"

soak: $(READY)  ## kill 1000 runs and 500 trainings, flip 1000 bits, draw 5000 kernel cases, damage 60000 mesh files, change kept JSON for ten minutes: nothing may be lost (about an hour on one core)
	$(BIN)/python -m tests.soak --kills 1000 --flips 1000 --trainings 500 --cases 5000 --meshes 60000 --documents 600 --seed 1

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(READY)  ## the manual's site into site/, every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(READY)  ## dist/recon_pointcloud-*.whl, to install elsewhere
	rm -rf build  # setuptools would pack what an earlier build left there
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# Those of accuracy train for hours, and are run by hand.
bench: $(READY)  ## every benchmark of speed into benchmarks/results/
	for script in $(filter-out %/__init__.py %/demo.py %/fast_paths.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

bench-kernels: $(READY)  ## time the point-cloud kernels beside plain torch and torch-cluster, and what a tiny call costs
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/kernel_calls.py

bench-pretrain: $(READY)  ## time a pretraining step beside the release's way (about ten minutes on one core)
	$(BIN)/python benchmarks/pretrain.py

# Of the checkout and what PYTHON has, torch, triton and numpy: a machine with a GPU is often bare, and offline.
gpu:  ## everything that needs a GPU, in nine minutes, without .venv: PYTHON has torch, triton and numpy
	$(PYTHON) benchmarks/gpu

demo-teacher: $(READY)  ## train the shipped teacher again (about half an hour)
	$(BIN)/python -m recon.pipeline.commands.train_demo
