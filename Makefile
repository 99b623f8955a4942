# make demo: environment, then one private image from prompt to PNG.   make test: environment, lint, types, tests.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PROMPT ?= noto style emoji of a woman health worker with medium skin tone

.PHONY: demo test lint types unit slow platforms compat compat-openvino eval ray qnn peers crypto clean

demo: $(VENV)/.demo
	$(BIN)/obclip demo "$(PROMPT)" --out out/demo.png

test: $(VENV)/.dev lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Whole data sets where `make test` takes every eighth item, families that are like others, training.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow

# What the device side needs (the base install) must exist as wheels on every platform it is meant for.
platforms:
	$(PYTHON) runtime_tests/platforms.py

# In environments of their own: the newest diffusers and transformers (optimum-onnx holds them back in the other), and
# OpenVINO through ONNX Runtime's own provider, whose package takes the place of onnxruntime.
compat: compat-openvino
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0
	.venv-compat/bin/python -m pip install --disable-pip-version-check -q --upgrade -e ".[cloud,export,plot]" pytest hypothesis
	.venv-compat/bin/python -m pytest --ignore=runtime_tests/test_wheel.py --ignore=runtime_tests/test_optimum.py

compat-openvino:
	$(PYTHON) -m venv .venv-ort-openvino
	.venv-ort-openvino/bin/python -m pip install --disable-pip-version-check -q onnxruntime-openvino==1.24.1 numpy tokenizers safetensors httpx pillow rich typer pytest
	.venv-ort-openvino/bin/python -m pip install --disable-pip-version-check -q --no-deps -e .
	.venv-ort-openvino/bin/python -m pytest --confcutdir=runtime_tests/ort_openvino runtime_tests/ort_openvino

# FID and Inception Score by torch-fidelity, whose torchvision wants a torch of its own: gigabytes.
eval:
	$(PYTHON) -m venv .venv-eval
	.venv-eval/bin/python -m pip install --disable-pip-version-check -q torchvision -e ".[cloud,export,eval]" pytest
	.venv-eval/bin/python -m pytest --confcutdir=runtime_tests/eval_metrics runtime_tests/eval_metrics

# Replicas under Ray Serve, one of them killed, in an environment of its own: Ray brings many packages of its own.
ray:
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	.venv-ray/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[cloud,export]" "ray[serve]==2.60.0" pytest
	.venv-ray/bin/python -m pytest runtime_tests/test_cloud_ray.py

# The embedded pair compiled for Qualcomm's HTP and run in its emulator, in an environment of its own: 250 MB.
qnn:
	$(PYTHON) -m venv .venv-qnn
	.venv-qnn/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e . onnx sympy pytest "onnxruntime-qnn==2.7.0"
	.venv-qnn/bin/python -m pytest -s --confcutdir=runtime_tests/qnn runtime_tests/qnn

# What runtime_tests.benchmarks.device compares with: optimum-intel and diffusers as they come, stable-diffusion.cpp built here.
peers:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0
	.venv-peers/bin/python -m pip install --disable-pip-version-check -q "torch==2.13.0" "optimum-intel[openvino]==2.2.0" diffusers==0.39.0 accelerate
	.venv-peers/bin/python -m pip uninstall -q -y torchvision # built for another torch; nothing here needs it, and imports fail
	CMAKE_ARGS=-DGGML_NATIVE=ON .venv-peers/bin/python -m pip install --disable-pip-version-check -q stable-diffusion-cpp-python==0.4.7

# What runtime_tests.benchmarks.crypto and table2 measure homomorphic encryption and two-party computation with.
crypto:
	$(PYTHON) -m venv .venv-crypto
	.venv-crypto/bin/python -m pip install --disable-pip-version-check -q tenseal==0.3.18 spu==0.9.5 numpy==1.26.4

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that the index's build of the pinned version is the one that stays.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP) install -q -c constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e ".[cloud]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-compat .venv-ray .venv-qnn .venv-peers .venv-crypto .venv-ort-openvino .venv-eval out build dist
