"""CUDA kernels on the CPU: simt.h gives an ordinary compiler the vocabulary of csrc/cuda/device.cuh, over fibers."""
