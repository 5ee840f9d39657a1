# SPDX-License-Identifier: Apache-2.0
# Development and demo of drift_ros. "make help" lists the targets, CONTRIBUTING.md explains them.
#
# Set-up is a chain of stamp files in the environment: each is younger than what it was made from,
# so "make setup" does what is missing and nothing else.

PYTHON ?= python3
VENV   ?= .venv

BIN := $(VENV)/bin
PY  := $(BIN)/python

# Everything started from here finds launch files and parameters in the environment.
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))
# The demo and the tests stay on this machine and apart from other ROS systems on it.
ROS_LOCAL := ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST

INTERFACES := $(wildcard drift_ros_msgs/*.* drift_ros_msgs/*/*.* tools/*_msgs/*.* \
                tools/*_msgs/*/*.*) tools/build_interfaces.py tools/ros_wheels.cmake
SHARED     := setup.py setup.cfg package.xml launch config $(wildcard launch/* config/* config/demo/*)

# An environment made with the ROS wheels and a sourced ROS do not mix, nor the other way round.
MADE_WITH := $(shell cat $(VENV)/ros 2>/dev/null)
ifneq ($(MADE_WITH),)
ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),help)),)
ifneq ($(MADE_WITH),$(or $(ROS_DISTRO),wheels))
$(error $(VENV) was made $(if $(filter wheels,$(MADE_WITH)),without a ROS installation,for ROS $(MADE_WITH)), but this shell has $(if $(ROS_DISTRO),ROS $(ROS_DISTRO) sourced,no ROS sourced). Use a shell like the first one, or start anew with "make clean setup")
endif
endif
endif
ifneq ($(filter-out wheels,$(MADE_WITH) $(if $(MADE_WITH),,$(or $(ROS_DISTRO),wheels))),)
# The wheels find the libraries of the interfaces by themselves, an installed ROS by this.
export LD_LIBRARY_PATH := $(abspath $(VENV))/lib$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
endif

.PHONY: help
help:
	@echo 'make setup   create $(VENV) with everything needed (PYTHON=python3.X picks the Python)'
	@echo 'make demo    follow two objects through a real clip in ROS 2: video, bag, contact sheet'
	@echo '             (VIDEO=file-or-folder MASK=label-image.png: your own; UI=1: mark in a browser)'
	@echo 'make demo-follow  let a simulated robot follow an object: video, plot, numbers'
	@echo 'make test    run the linters and all tests'
	@echo 'make lint    run the linters only'
	@echo 'make train   train the embedded model (PHOTOS=folder, ARGS=...)'
	@echo 'make eval    measure J and F on a DAVIS folder (ROOT=folder, ARGS=...)'
	@echo 'make soak    attack a live tracker for HOURS=1, then try 10^5 inputs made by chance'
	@echo 'make clean   remove $(VENV), caches and build files; keeps data/ and out/'

.PHONY: setup
setup: $(VENV)/.stamp-package $(VENV)/.stamp-clip

$(VENV)/.stamp-create:
	@echo '[1/5] virtual environment'
	@$(PYTHON) tools/environment.py create $(VENV)
	@touch $@

$(VENV)/.stamp-packages: $(VENV)/.stamp-create requirements.txt requirements-dev.txt requirements-ros.txt
	@echo '[2/5] packages'
	@$(PYTHON) tools/environment.py packages $(VENV)
	@touch $@

$(VENV)/.stamp-interfaces: $(VENV)/.stamp-packages $(INTERFACES)
	@echo '[3/5] ROS interfaces'
	@$(PY) tools/build_interfaces.py
	@touch $@

$(VENV)/.stamp-package: $(VENV)/.stamp-interfaces $(SHARED)
	@echo '[4/5] drift_ros'
	@$(PYTHON) tools/environment.py package $(VENV)
	@touch $@

$(VENV)/.stamp-clip: tools/get_clip.py $(VENV)/.stamp-create
	@echo '[5/5] clip for the demo'
	@$(PY) tools/get_clip.py data/clips
	@touch $@

.PHONY: demo
demo: setup
	@$(ROS_LOCAL) $(BIN)/drift_ros demo $(if $(VIDEO),--video '$(VIDEO)') \
	  $(if $(MASK),--mask '$(MASK)') $(if $(UI),--ui) $(ARGS)

.PHONY: demo-follow
demo-follow: setup
	@$(ROS_LOCAL) $(BIN)/drift_ros demo-follow $(ARGS)

.PHONY: test
test: lint
	@$(ROS_LOCAL) $(PY) -m pytest -n auto --dist loadfile --max-worker-restart 0 $(ARGS)

.PHONY: lint
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8
	$(BIN)/mypy

.PHONY: train
train: setup
	$(PY) -m training $(if $(PHOTOS),--photos '$(PHOTOS)') $(ARGS)

.PHONY: eval
eval: setup
	$(if $(ROOT),,$(error Name a folder with JPEGImages and Annotations: make eval ROOT=...))
	$(BIN)/drift_ros eval davis '$(ROOT)' $(ARGS)

HOURS ?= 1

.PHONY: soak
soak: setup
	@$(ROS_LOCAL) $(PY) test/soak/soak.py --hours $(HOURS) $(ARGS)
	$(PY) -m pytest test/unit/test_attacks.py --hypothesis-profile=soak

.PHONY: clean
clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build install log *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
