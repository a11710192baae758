# One verb per habit. Every target makes .venv itself when it is missing or older than what it was made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Where pip finds torch: empty for the package index that pip is set to, whose build for Linux brings several GB of
# CUDA; https://download.pytorch.org/whl/cpu has a build for CPUs only.
TORCH_INDEX ?=
INSTALL := $(PIP) install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help install demo test test-long test-frontends lint format protos release-protos docs lock image gallery bench gpu-check clean
.DEFAULT_GOAL := help

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit(f"Python {sys.version.split()[0]} is too old: 3.10 or newer is needed")'
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) -e '.[dev]'
	@touch $@

install: $(VENV)/.made ## make .venv, with the command latentry

demo: $(VENV)/.made ## train, export, serve and call; pictures in out/demo
	@$(BIN)/latentry demo --data data/fashion-mnist --out out/demo

# Each worker has half of the tests, and takes over from the other when it is done: files stay together, mostly.
test: $(VENV)/.made ## run the tests (WORKERS=2 at a time)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-long: $(VENV)/.made ## the same, fuzzing and soaking for as long as a release deserves
	@LATENTRY_LONG_TESTS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# What serves, once more with its front end apart from its engine: in one loop, and where servers are processes as such.
BEHIND_FRONT_ENDS := servicer call reloader quotas statuses streams metrics generating tracing tls security precisions \
  oip_service oip_streams oip_refusals oip_repository oip_kinds client client_streams coalescing batched_alike conditional \
  served_priors health_command admin_command kills hostile
test-frontends: $(VENV)/.made ## run the tests of what serves with --frontends 2
	@LATENTRY_TEST_FRONTENDS=2 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(BEHIND_FRONT_ENDS:%=tests/test_%.py)

lint: $(VENV)/.made ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(VENV)/.made ## rewrite the code in its one style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# grpcio-tools is pinned to a release whose stubs run with protobuf 6 and 7 both.
protos: $(VENV)/.made ## make the stubs from protos/
	@$(BIN)/python -W ignore -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. \
	  $(sort $(wildcard protos/latentry/*/*.proto))
	@$(BIN)/python -W ignore -m grpc_tools.protoc -Iprotos/inference --python_out=serving/inference \
	  --pyi_out=serving/inference $(sort $(wildcard protos/inference/*.proto))
	@$(BIN)/python -W ignore -m grpc_tools.protoc -Iprotos/inference --grpc_python_out=serving/inference \
	  protos/inference/grpc_service.proto
	@sed -i.bak 's/^import \(.*_pb2\) as/from serving.inference import \1 as/' serving/inference/*_pb2*.py* && rm serving/inference/*.bak

release-protos: RELEASED = protos/released/$(shell $(BIN)/python -c 'import latentry; print(latentry.__version__)').binpb
release-protos: $(VENV)/.made ## keep this version's API, for later ones to be compared with (protos/released)
	@test ! -e $(RELEASED) || { echo '$(RELEASED) is there, and stays as it is: raise the version' >&2; exit 1; }
	@$(BIN)/python -W ignore -m grpc_tools.protoc -Iprotos --include_imports --descriptor_set_out=$(RELEASED) \
	  $(sort $(wildcard protos/latentry/*/*.proto))

docs: $(VENV)/.made ## write docs/configuration.md anew
	@$(BIN)/python -m serving.settings_text >docs/configuration.md

gallery: $(VENV)/.made ## remake docs/gallery.md and its pictures: trains some 15 small models into out/gallery
	@$(BIN)/python -m training.gallery --data data/fashion-mnist $(if $(FACES),--faces $(FACES)) $(if $(FACES_MODEL),--faces-model $(FACES_MODEL)) --out docs/gallery

bench: $(VENV)/.made ## how fast the service is, against its bounds (needs h2load; PEERS=HOME: and other servers)
	@$(BIN)/python -m benchmarks.serving $(if $(PEERS),--peers $(PEERS))

gpu-check: $(VENV)/.made ## on a machine with an NVIDIA GPU: does it serve right, and how fast (needs the extra cuda)
	@$(BIN)/python -m benchmarks.gpu_check

lock: ## write constraints.txt anew (needs uv)
	@sed -n '/^#/p' constraints.txt >constraints.new && echo torch==2.13.0 >constraints.pin
	@uv pip compile -q --universal --python-version 3.10 --no-header --no-annotate --extra dev --extra cuda \
	  pyproject.toml -c constraints.pin >>constraints.new
	@mv constraints.new constraints.txt && rm constraints.pin

image: ## build the serving image (CONTAINER=docker, podman or buildah)
	$(CONTAINER) build -t latentry .

CONTAINER ?= docker
WORKERS ?= 2

clean: ## remove what the other targets made, except models
	rm -rf $(VENV) out
