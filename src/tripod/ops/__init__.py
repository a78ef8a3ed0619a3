"""Pure functions on tensors: the definition of each operation; fast twins live in `ops/kernels`."""
