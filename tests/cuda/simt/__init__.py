"""CUDA kernels on the CPU: simt.h gives an ordinary compiler the vocabulary of device.cuh, over fibers."""
