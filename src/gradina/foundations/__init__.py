"""From Python and its standard library alone: chance, matrices, tensors with gradients, layers, learning, data.

For reading and for lessons. Nothing else in Gradina uses it: everything here exists elsewhere, many times as quick.
"""
