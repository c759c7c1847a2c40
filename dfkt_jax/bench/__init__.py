"""`dfkt bench`: speed, comparison with PyTorch, and scaling.

workloads, latents    the four hot paths of the PyTorch reference, in JAX
timing, peaks         their seconds, memory and FLOP/s
against               the same, alternating with PyTorch
collectives, scaling  communication between devices, counted in the programs
topologies            meshes of TPUs that need not exist, to compile for
design                costs of single design decisions
"""
