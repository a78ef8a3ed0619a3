"""Triton twins of the reference operations, for NVIDIA GPUs. Not yet measured on one: tested in Triton's interpreter."""
