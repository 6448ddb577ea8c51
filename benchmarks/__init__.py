"""Measurements of speed and memory: `python -m benchmarks` on a CPU, `python -m benchmarks.gpu` on a GPU."""
