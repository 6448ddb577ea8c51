"""`python -m benchmarks`: every table into benchmarks/results/<machine>.json; options are those of bench_layers.py."""

import re
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent)
)  # the files here also run as scripts and import each other flat

import bench_layers
import harness

arguments = sys.argv[1:]
if "--quick" not in arguments and "--json" not in arguments:
    arguments += ["--json", re.sub(r"[^a-z0-9]+", "-", harness.cpu_model().lower()).strip("-")]
sys.exit(bench_layers.main(arguments))
