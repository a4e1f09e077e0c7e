"""From Python's standard library alone: random numbers, matrices, tensors with autograd, layers, optimizers, data.

For reading and for the lessons. Nothing else in Gradina uses it: PyTorch does all of it many times faster.
"""
