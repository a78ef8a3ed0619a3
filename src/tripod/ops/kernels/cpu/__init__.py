"""Kernels for the processor, in C++, each beside its torch reference of the same name in `tripod.ops`."""
