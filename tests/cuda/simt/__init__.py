"""CUDA kernels on the CPU: simt.h has the names of device.cuh for an ordinary compiler, and simulates threads."""
