"""`dfkt bench`: how fast, beside what, and why.

workloads, latents  the four hot paths of PyTorch's reference, out of ours
timing, peaks       seconds, memory and FLOP/s of them
against             the same beside PyTorch, alternating
collectives, scaling  what devices say to each other, counted in the program
topologies          TPUs that are not there, to compile for
design              what single design decisions cost
"""
