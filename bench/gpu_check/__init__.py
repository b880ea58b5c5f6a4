"""Everything about penstock on a machine with an NVIDIA GPU, in one command.

``python -m bench.gpu_check`` builds the CUDA plugin, runs the tests on the device, checks what
tests cannot see (sanitizers, repeated runs, graphs, streams, memory), and measures every operation
beside the device's own limits and its peers. ``--emulated`` runs the same over the emulated CUDA
backend, without a GPU. docs/gpu_check.md describes stages, options and the file that is written.
"""
