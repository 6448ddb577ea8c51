# Everything runs in .venv, which the first target that needs it makes: Python 3.10+ (with venv), a C++17 compiler and
# a way for pip to fetch packages are all it takes. Stamp files in .venv let later calls redo only what changed.

PYTHON ?= python3
# What pip installs as torch. Any release from 2.11 on works; name another, or a build for some accelerator, with pip's
# own syntax: make test TORCH="torch==2.11.0 --find-links FOLDER". Read when .venv is made, so `make distclean` first.
TORCH ?= torch==2.13.0
# The CUDA part is built with nvcc and this torch, in a second environment. CUDA_PYTHON=PATH names an interpreter that
# has such a torch, pytest, setuptools, ninja and pybind11 already. With REQUIRE_CUDA=1 a missing nvcc is a failure.
TORCH_CUDA ?= torch==2.14.1
REQUIRE_CUDA ?=
# The oldest torch that works has an environment too. All of these may lie elsewhere, to be kept when a clone is not.
TORCH_FLOOR ?= torch==2.11.0
# Passed on: make test PYTEST="-k lstm -x", make demo DEMO="--threads 1", make bench BENCH=...
PYTEST ?=
# How many tests run at a time: make test JOBS=1
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
SIDE_BY_SIDE = -n $(JOBS) --dist worksteal
DEMO ?=
BENCH ?=
CUDA_CHECK ?=

VENV := .venv
PY := $(VENV)/bin/python
CUDA_VENV ?= .venv-cuda
FLOOR_VENV ?= .venv-floor
CUDA_PYTHON ?= $(CUDA_VENV)/bin/python
NVCC := $(shell PATH="$${CUDA_HOME:+$$CUDA_HOME/bin:}$$PATH" command -v nvcc)
SOURCES := setup.py $(shell find csrc -type f 2>/dev/null)
# torch's build finds ninja on the PATH alone
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help build setup demo demo-small test test-peers lint check bench bench-quick report bench-compare mutants \
  mutants-sample asan asan-build fuzz fuzz-sample clean distclean simt-full torch-floor cuda-setup cuda-check \
  cuda-static cuda-build

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

# -- environment ------------------------------------------------------------------------------------------------------

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet 'setuptools>=77' wheel ninja pybind11
	touch $@

# Editable, so Python files need no stamp. setup.py keeps the objects under build/, so later builds are incremental.
$(VENV)/.built: $(VENV)/.torch pyproject.toml $(SOURCES)
	$(PY) -m pip install --quiet --no-build-isolation --editable .
	touch $@

# pip takes the extra from the metadata just installed and builds nothing again
$(VENV)/.toolkit: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[toolkit]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[dev]'
	touch $@

build: $(VENV)/.built ## the extension, and the package as an editable install
	$(PY) -m seqcls_fast info

setup: $(VENV)/.built $(VENV)/.dev ## build, and what tests and linters need

# -- use --------------------------------------------------------------------------------------------------------------

demo: $(VENV)/.toolkit ## train a classifier of code snippets, report on it, and time it beside torch.nn's (half a minute)
	$(PY) examples/demo.py $(DEMO)

demo-small: $(VENV)/.toolkit
	$(PY) examples/demo.py --small $(DEMO)

# Tests run side by side on every core; those marked `alone` run afterwards, one at a time. pytest exits with 5 where
# nothing was collected, which one of the two groups may do under -k or with names of files, but not both.
test: setup ## every test, and the examples in docstrings, README and docs
	@$(PY) -m pytest -m "not alone" $(SIDE_BY_SIDE) $(PYTEST); many=$$?; \
	  $(PY) -m pytest -m alone $(PYTEST); few=$$?; \
	  case "$$many $$few" in "0 0" | "0 5" | "5 0") ;; *) exit 1 ;; esac

# The documents' examples come last: they crashed once on what a benchmark's engine had left behind in the process.
test-peers: setup $(VENV)/.bench ## tests of the benchmarks, with every peer installed
	$(PY) -m pytest $(wildcard tests/benchmarks/test_bench_*.py) tests/project/test_docs.py $(PYTEST)

# -- checks -----------------------------------------------------------------------------------------------------------

# Up to demo-small without the peers of the benchmarks (in a fresh .venv), from test-peers on with them.
check: ## what .ci/run runs; each stage prints its own time
	@for stage in setup lint test demo-small test-peers bench-quick fuzz-sample torch-floor cuda-setup cuda-check \
	  cuda-build mutants-sample; do \
	  printf '\n== %s\n' "$$stage"; start=$$(date +%s); \
	  $(MAKE) --no-print-directory "$$stage" || { echo "== $$stage failed"; exit 1; }; \
	  echo "== $$stage took $$(( $$(date +%s) - start )) s"; \
	done

lint: setup ## ruff, mypy, clang-format, and the greps that hold the dependency rule
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	find csrc tests/cuda/simt -regex '.*\.\(h\|cpp\|cuh?\)' -exec $(VENV)/bin/clang-format --dry-run -Werror {} +
	.ci/greps

mutants: setup ## change the kernels in many small ways, one at a time: each change must fail a test (long)
	$(PY) tests/mutation/mutants.py

mutants-sample: setup
	$(PY) tests/mutation/mutants.py --sample 6

# The same sources with AddressSanitizer and UBSan, in folders of their own. The interpreter is not instrumented, so the
# runtimes come first by LD_PRELOAD (libstdc++ with them, or C++ exceptions abort); it never frees what it interned, so
# leaks are not reported. `pytest` and not `python -m pytest`: the latter would import the package from the tree. The
# checks left out double the compile time of the kernels, and one ISA besides the portable one is enough by default.
SANITIZE := -fsanitize=address,undefined -fno-sanitize=null,vptr,object-size -fno-sanitize-recover=undefined
ASAN_ISAS ?= avx2
ASAN_RUNTIMES = $$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)
asan-build: setup
	CFLAGS="$(SANITIZE) -fno-omit-frame-pointer" LDFLAGS="$(SANITIZE)" $(PY) setup.py --quiet \
	  build --build-lib build/asan/lib build_ext --build-temp build/asan/temp --isas=$(ASAN_ISAS)

asan: asan-build ## kernel tests on an extension with AddressSanitizer and UBSan
	PYTHONPATH=build/asan/lib ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(ASAN_RUNTIMES)" \
	  $(VENV)/bin/pytest -p no:cacheprovider tests/layers/test_backends.py tests/layers/test_limits.py $(PYTEST)

# Memory that cannot be had is refused, as it is without the sanitizers: AddressSanitizer's own malloc() and the
# operator new of fuzz_new.cpp see to that. Fresh memory is full of NaN.
FUZZ ?=
FUZZ_OPTIONS := detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048:malloc_fill_byte=255
FUZZ_OPTIONS := $(FUZZ_OPTIONS):max_malloc_fill_size=268435456:verify_asan_link_order=0:alloc_dealloc_mismatch=0
FUZZ_OPS = PYTHONPATH=build/asan/lib:tests ASAN_OPTIONS=$(FUZZ_OPTIONS) UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$(CURDIR)/build/asan/new.so $(ASAN_RUNTIMES)" $(PY) tests/fuzz/fuzz_ops.py --shards 2
build/asan/new.so: tests/fuzz/fuzz_new.cpp
	mkdir -p $(@D)
	$(CXX) -O1 -shared -fPIC $< -o $@

fuzz: asan-build build/asan/new.so ## 100,000 valid and hostile calls of the operators with both sanitizers, and 500 races
	$(FUZZ_OPS) --calls 100000 $(FUZZ)
	$(FUZZ_OPS) --calls 500 --races $(FUZZ)

fuzz-sample: asan-build build/asan/new.so ## 2,000 of them, and 40 races
	$(FUZZ_OPS) --calls 2000 $(FUZZ)
	$(FUZZ_OPS) --calls 40 --races $(FUZZ)

# -- other releases of torch ------------------------------------------------------------------------------------------

# CI tests one release in full, and of the oldest and the newest what torch itself has a part in. Each environment is
# made once (5 GB: PyPI's builds are for CUDA). A build's tests run in the folder that has the package, or the one of the
# tree, built for another release, would be theirs.
RELEASE_NEEDS := 'setuptools>=77' wheel ninja pybind11 pytest pytest-xdist hypothesis expecttest numpy onnx onnxscript onnxruntime
RELEASE_TESTS := $(addprefix $(CURDIR)/tests/,$(addprefix layers/,test_nn.py test_nn_cells.py test_nn_inputs.py test_nn_torch.py \
  test_ops.py) transforms/test_func.py transforms/test_transforms.py)
PYTEST_ELSEWHERE := -m pytest -q -p no:cacheprovider -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR)

$(FLOOR_VENV)/.ready:
	$(PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip install --quiet $(TORCH_FLOOR) $(RELEASE_NEEDS)
	touch $@

torch-floor: $(FLOOR_VENV)/.ready ## build against the oldest torch that works, and test modules, ops and transforms there
	PATH="$(abspath $(FLOOR_VENV))/bin:$$PATH" SEQCLS_CUDA=0 $(FLOOR_VENV)/bin/python setup.py --quiet \
	  build --build-lib build/floor/lib build_ext --build-temp build/floor/temp --isas=avx2
	cd build/floor/lib && $(abspath $(FLOOR_VENV))/bin/python $(PYTEST_ELSEWHERE) $(SIDE_BY_SIDE) $(RELEASE_TESTS)

# -- CUDA -------------------------------------------------------------------------------------------------------------

simt-full: setup ## the CUDA kernels on the CPU, the whole product of cases instead of pairs (an hour)
	$(PY) -m pytest tests/cuda/test_simt.py --simt-full $(PYTEST)

$(CUDA_VENV)/.ready:
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet $(TORCH_CUDA)
	$(CUDA_VENV)/bin/python -m pip install --quiet $(RELEASE_NEEDS)
	touch $@

ifeq ($(NVCC),)
cuda-setup cuda-check cuda-static cuda-build:
	@echo "$@ skipped: no nvcc in CUDA_HOME or on the PATH"
	@test -z "$(REQUIRE_CUDA)" || { echo "$@: expected nvcc, as REQUIRE_CUDA is set" >&2; exit 1; }
else
cuda-setup: $(if $(filter $(CUDA_VENV)/%,$(CUDA_PYTHON)),$(CUDA_VENV)/.ready)

cuda-check: cuda-setup ## compile the CUDA kernels: spills, registers, what is in their time loops
	$(CUDA_PYTHON) tools/cuda_check.py $(CUDA_CHECK)

cuda-static: cuda-setup ## the same, and write docs/design/cuda-static.md
	$(CUDA_PYTHON) tools/cuda_check.py --static-report docs/design/cuda-static.md $(CUDA_CHECK)

# Beside the CPU build, as asan's.
cuda-build: cuda-setup ## the whole extension with CUDA, against the newest torch, tested without a GPU
	PATH="$(dir $(abspath $(CUDA_PYTHON))):$$PATH" SEQCLS_CUDA=1 $(CUDA_PYTHON) setup.py --quiet \
	  build --build-lib build/cuda/lib build_ext --build-temp build/cuda/temp
	cd build/cuda/lib && SEQCLS_CUDA=1 $(abspath $(CUDA_PYTHON)) $(PYTEST_ELSEWHERE) \
	  $(addprefix $(CURDIR)/tests/,cuda/test_cuda_build.py project/test_build.py)
	cd build/cuda/lib && $(abspath $(CUDA_PYTHON)) $(PYTEST_ELSEWHERE) $(SIDE_BY_SIDE) --impl auto $(RELEASE_TESTS)
endif

# -- measurements -----------------------------------------------------------------------------------------------------

$(VENV)/.bench: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[bench]'
	touch $@

bench: $(VENV)/.bench ## every benchmark against every peer, into benchmarks/results (about 13 minutes)
	$(PY) -m benchmarks $(BENCH)

bench-quick: setup ## a small size of each, against the peers that are there, to see that they run (a minute)
	$(PY) -m benchmarks --quick $(BENCH)

report: $(VENV)/.torch ## docs/performance.md, docs/machines and the charts from benchmarks/results
	$(PY) -m benchmarks.report

# The working tree as it is against a revision, which is built beside it: make bench-compare BASE=HEAD~1
BASE ?=
bench-compare: setup ## time against another revision: BASE=REVISION
	$(PY) -m benchmarks.compare $(BENCH) $(BASE)

# PYTHON, if it is given, else .venv's
GPU ?=
.PHONY: gpu
gpu: $(if $(filter file,$(origin PYTHON)),$(VENV)/.torch) ## where a GPU and nvcc are: build, check and measure the CUDA part
	$(if $(filter file,$(origin PYTHON)),$(PY),$(PYTHON)) -m benchmarks.gpu $(GPU)

# -- tidying ----------------------------------------------------------------------------------------------------------

clean: ## what was built and cached, but not .venv
	rm -rf build dist *.egg-info seqcls_fast/_C*.so $(VENV)/.built
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and the environments
	rm -rf $(VENV) $(FLOOR_VENV) $(CUDA_VENV)
