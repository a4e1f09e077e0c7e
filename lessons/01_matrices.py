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
# # 1. From scratch: random numbers and matrix multiplication
#
# A diffusion model is, in the end, a very large number of multiplications and additions that start from random numbers.
# This lesson makes both in nothing but Python, and then asks what makes the same multiplications faster.
#
# ## Random numbers from arithmetic
#
# A computer cannot throw dice. A *pseudorandom generator* computes a sequence that looks random to anyone who does not
# know its start. A *linear congruential* one multiplies, and keeps the remainder. The sum of three small ones takes
# very long until it repeats: it has a long *period* (Wichmann and Hill, 1982). The start is called the *seed*. The same
# seed gives the same numbers, and that is why you can send somebody a seed and they get the same picture.

# %%
import math

from gradina.foundations.random import MODULI, Random

print(f"period: {math.lcm(*(modulus - 1 for modulus in MODULI)):,} numbers")
print([round(Random(1024).uniform(), 4) for _ in range(3)], "the same seed, three times")
random = Random(1024)
print([round(random.uniform(), 4) for _ in range(3)], "one generator, three times")

# %% [markdown]
# These numbers are *uniformly* distributed: all values from 0 to 1 are equally likely. The noise in a picture follows
# the *normal distribution*, the bell curve. The *Box-Muller transform* (1958) turns two uniform numbers into two normal
# ones: they become the angle and the radius of a point in the plane, and its coordinates are the result.

# %%
import matplotlib.pyplot as plt
from lesson import full_or_short

count = full_or_short(20_000, 2_000)
uniform, normal = [random.uniform() for _ in range(count)], [random.normal() for _ in range(count)]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6))
left.hist(uniform, bins=40, color="#9aa5b1")
left.set_title(f"uniform: mean {sum(uniform) / count:.3f}")
right.hist(normal, bins=60, color="#c2571a")
within = sum(abs(x) < 1 for x in normal) / count
right.set_title(f"normal: {100 * within:.1f} % within one standard deviation")
plt.show()

# %% [markdown]
# ## Matrix multiplication
#
# Nearly all of a network's work is one operation, the product of two matrices: the element in row i and column j is the
# sum, over k, of `a[i][k] * b[k][j]`. Here it is, straight from the definition.

# %%
import inspect

from gradina.foundations import matrix

print(inspect.getsource(matrix.by_index))

# %% [markdown]
# ## Five implementations
#
# Here is the same product in five ways. All do the same multiplications; they differ in the overhead.
#
# 1. **by index**: for each multiplication, Python looks up four list elements by their index.
# 2. **by rows**: iterates over rows and columns together, without indexing.
# 3. **by library**: the inner loop runs in Python's standard library, which is written in C.
# 4. **numpy**: the values are not separate Python objects but plain floats, side by side in memory, so that caches work
#    well. All cores work on them, with *SIMD* instructions, which do several multiplications at once.
# 5. **torch**: the same in fp32, floats of 32 bits instead of Python's 64. SIMD does twice as many of them at once.

# %%
import time

import numpy as np
import torch

side = full_or_short(256, 64)
a, b = ([[random.normal() for _ in range(side)] for _ in range(side)] for _ in range(2))
array_a, array_b = np.array(a), np.array(b)
tensor_a, tensor_b = torch.tensor(a), torch.tensor(b)
implementations = {
    "by index": lambda: matrix.by_index(a, b),
    "by rows": lambda: matrix.by_rows(a, b),
    "by library": lambda: matrix.by_library(a, b),
    "numpy": lambda: array_a @ array_b,
    "torch": lambda: tensor_a @ tensor_b,
}


def benchmark(function):
    """Seconds for one call: the best of five runs of at least 20 ms each."""
    best = float("inf")
    for _ in range(5):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.02:
            function()
            calls += 1
        best = min(best, (time.perf_counter() - start) / calls)
    return best


durations = {name: benchmark(function) for name, function in implementations.items()}
slowest, flops = durations["by index"], 2 * side**3
previous = None
print(f"{side} x {side} by {side} x {side}: {flops / 1e6:.1f} million floating-point operations\n")
for name, seconds in durations.items():
    speed, speedup = (
        f"{1000 * seconds:9.3f} ms  {flops / seconds / 1e9:8.3f} GFLOP/s",
        f"{slowest / seconds:9.1f} times the first",
    )
    ratio = "" if previous is None else f"{previous / seconds:7.1f} times the previous one"
    print(f"{name:10}  {speed}, {speedup}", ratio)
    previous = seconds

# %% [markdown]
# All give the same result, up to the rounding of their dtypes:

# %%
expected = np.array(implementations["by index"]())
for name, function in implementations.items():
    product = function()
    values = np.array(product if isinstance(product, list) else product.tolist())
    print(f"{name:10}  largest difference {np.abs(values - expected).max():.1e}")

# %%
figure, axes = plt.subplots(figsize=(8, 2.8))
speeds = [flops / seconds / 1e9 for seconds in durations.values()]
bars = axes.barh(list(durations)[::-1], speeds[::-1], color=["#c2571a"] + ["#9aa5b1"] * 4)
axes.bar_label(bars, [f"{s:.3g} GFLOP/s" for s in speeds[::-1]], padding=4)
axes.set_xscale("log")
axes.set_xlim(right=20 * max(speeds))
plt.show()

# %% [markdown]
# And for a picture? This is how many operations one step of Stable Diffusion 1.5 takes, with guidance, at 512x512, and
# how long each implementation would take for it at the speed above:

# %%
from gradina.bench.workloads import sd15

step = sd15().gflop["U-Net step"]
print(f"{step:,.0f} GFLOP")
for name, speed in zip(durations, speeds, strict=True):
    print(f"{name:10}  {step / speed:12,.0f} s")

# %% [markdown]
# ## What to try next
#
# * Change `side`. How do the speeds change? numpy and torch need large matrices to be at their best, pure Python does
#   not.
# * `matrix.by_library` transposes `b` first: its columns become rows. What happens without it, and why?
