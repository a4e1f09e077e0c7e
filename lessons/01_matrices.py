# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. From nothing: chance, and the product of two matrices
#
# A diffusion model is, in the end, very many multiplications and additions, begun from numbers that are drawn by lot.
# This lesson makes both from nothing but Python, and then asks what makes the same multiplications quicker.
#
# ## Chance from arithmetic
#
# A computer cannot throw dice. It can compute a sequence that nobody who does not know its beginning tells from dice:
# multiply, and keep the remainder. Three such small generators, added up, take very long until they repeat (Wichmann
# and Hill, 1982). The beginning is called the seed; the same seed gives the same numbers, and that is why a seed sent
# to somebody else gives them the same picture.

# %%
import math

from gradina.foundations.random import MODULI, Random

print(f"repeats after {math.lcm(*(modulus - 1 for modulus in MODULI)):,} numbers")
print([round(Random(1024).uniform(), 4) for _ in range(3)], "the same seed, three times")
random = Random(1024)
print([round(random.uniform(), 4) for _ in range(3)], "one generator, three times")

# %% [markdown]
# Noise in a picture follows the bell curve. Two even numbers become two from the bell curve by a turn of geometry (Box
# and Muller, 1958): one is an angle, the other says how far to go.

# %%
import matplotlib.pyplot as plt
from lesson import full_or_short

count = full_or_short(20_000, 2_000)
even, bell = [random.uniform() for _ in range(count)], [random.normal() for _ in range(count)]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6))
left.hist(even, bins=40, color="#9aa5b1")
left.set_title(f"uniform: mean {sum(even) / count:.3f}")
right.hist(bell, bins=60, color="#c2571a")
inside = sum(abs(x) < 1 for x in bell) / count
right.set_title(f"normal: {100 * inside:.1f} % lie within 1 of the mean")
plt.show()

# %% [markdown]
# ## The product of two matrices
#
# Nearly all of the work of a network is one operation: the number in row i and column j of the product is the sum, over
# k, of `a[i][k] * b[k][j]`. Here it is, as the definition says it.

# %%
import inspect

from gradina.foundations import matrix

print(inspect.getsource(matrix.by_index))

# %% [markdown]
# ## The ladder
#
# The same product, in five ways. Each does the same multiplications; what changes is what is done around them.
#
# 1. **by index**: for each multiplication, Python looks up four things by their number.
# 2. **by rows**: rows and columns are walked along together, so that nothing is looked up twice.
# 3. **by library**: the inner loop is done by the standard library, which is written in C.
# 4. **numpy**: the numbers lie side by side in memory as the processor has them, instead of being Python objects each;
#    all cores work on them, with instructions that do several multiplications at once.
# 5. **torch**: the same with numbers of 32 bits instead of Python's 64, of which twice as many are done at once.

# %%
import time

import numpy as np
import torch

side = full_or_short(256, 64)
a, b = ([[random.normal() for _ in range(side)] for _ in range(side)] for _ in range(2))
array_a, array_b = np.array(a), np.array(b)
tensor_a, tensor_b = torch.tensor(a), torch.tensor(b)
ladder = {
    "by index": lambda: matrix.by_index(a, b),
    "by rows": lambda: matrix.by_rows(a, b),
    "by library": lambda: matrix.by_library(a, b),
    "numpy": lambda: array_a @ array_b,
    "torch": lambda: tensor_a @ tensor_b,
}


def seconds(way):
    """The best of some tries, each long enough to be measured."""
    best = float("inf")
    for _ in range(5):
        times, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.02:
            way()
            times += 1
        best = min(best, (time.perf_counter() - start) / times)
    return best


taken = {name: seconds(way) for name, way in ladder.items()}
slowest, flops = taken["by index"], 2 * side**3
before = None
print(f"{side} x {side} by {side} x {side}: {flops / 1e6:.1f} million multiplications and additions\n")
for name, each in taken.items():
    speed, factor = (
        f"{1000 * each:9.3f} ms  {flops / each / 1e9:8.3f} GFLOP/s",
        f"{slowest / each:9.1f} times the first",
    )
    print(f"{name:10}  {speed}, {factor}", "" if before is None else f"{before / each:7.1f} times the rung below")
    before = each

# %% [markdown]
# All of them give the same numbers, up to the rounding of their types:

# %%
expected = np.array(ladder["by index"]())
for name, way in ladder.items():
    product = way()
    numbers = np.array(product if isinstance(product, list) else product.tolist())
    print(f"{name:10}  largest difference {np.abs(numbers - expected).max():.1e}")

# %%
figure, axes = plt.subplots(figsize=(8, 2.8))
speeds = [flops / each / 1e9 for each in taken.values()]
bars = axes.barh(list(taken)[::-1], speeds[::-1], color=["#c2571a"] + ["#9aa5b1"] * 4)
axes.bar_label(bars, [f"{s:.3g} GFLOP/s" for s in speeds[::-1]], padding=4)
axes.set_xscale("log")
axes.set_xlim(right=20 * max(speeds))
plt.show()

# %% [markdown]
# And a picture? So many operations ask one guided step of Stable Diffusion 1.5 at 512x512, and so long each rung would
# take for it, if it kept its speed:

# %%
from gradina.bench.workloads import sd15

step = sd15().gflop["U-Net step"]
print(f"{step:,.0f} GFLOP")
for name, speed in zip(taken, speeds, strict=True):
    print(f"{name:10}  {step / speed:12,.0f} s")

# %% [markdown]
# ## What to try next
#
# * Change `side`. The rungs move: numpy and torch need large matrices to be at their best, pure Python does not care.
# * `matrix.by_library` turns the columns of `b` into rows first. What happens without it, and why?
