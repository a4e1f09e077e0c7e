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
# # 7. Samplers as optimizers
#
# Lesson 3 went uphill on a function's gradient; lesson 4 took away noise that a network says. Both are the same walk:
# the noise that is left in a picture is, but for a factor, the gradient of its distance to the pictures there are. So
# an optimizer, of those with which networks learn, should be able to draw. Most samplers come from elsewhere, from the
# solution of differential equations. Which of them draws better?
#
# The shipped model draws; what it draws is judged in two ways. How far, on average, is a picture from the one that very
# many small steps lead to from the same noise? And how many of the things that were asked for are recognised, by the
# contrastive pair of lesson 6, among all 320?

# %%
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from lesson import full_or_short, show

import gradina
from gradina.images.tensor import to_pixels
from gradina.tasks.retrieval import embed_pictures, embed_texts, open_pair

model, pair = gradina.load("emoji", dtype="fp32"), open_pair("emoji")
things = pair.phrases[0][: full_or_short(16, 2)]
request = gradina.Request(prompt=tuple(f"{thing} in noto style" for thing in things), seed=1)
names = embed_texts(pair, pair.phrases[0])


def draw(**how):
    """The pictures (n, 3, h, w) as tensors and as they are, and how many of the things are recognised."""
    drawn = [picture.image for picture in gradina.generate(model, replace(request, **how))]
    nearest = (embed_pictures(pair, drawn) @ names.T).argmax(1)
    read = (nearest == torch.arange(len(things))).float().mean().item()
    return torch.stack([to_pixels(image) for image in drawn]), drawn, read


many, start = full_or_short(1000, 12), time.perf_counter()
goal, goal_pictures, goal_read = draw(sampler="dpmpp_2m", steps=many)
taken = time.perf_counter() - start
print(f"{len(things)} pictures of {many} steps in {taken:.0f} s; recognised: {100 * goal_read:.0f} %")


def distance(pixels):
    """Root mean square over all pixels, in grey levels of 255."""
    return ((pixels - goal) ** 2).mean().sqrt().item() * 127.5


# %% [markdown]
# ## Four optimizers and two solvers
#
# * `sgd`: along the gradient, as far as the noise level falls. That is Euler's method, to the last bit.
# * `momentum`: along the mean of the gradients so far, the older the less.
# * `nesterov`: the same, and the newest once more.
# * `adam`: each number of the mean over its usual size.
# * `euler`, and `dpmpp_2m`, a solver that looks back at one step before, as many programs use it.

# %%
COUNTS = full_or_short((5, 10, 20, 50), (2, 3))
SAMPLERS = ("euler", "dpmpp_2m", "sgd", "momentum", "nesterov", "adam")
table, shown = {}, {}
for sampler in SAMPLERS:
    for count in COUNTS:
        pixels, drawn, read = draw(sampler=sampler, steps=count)
        table[sampler, count] = distance(pixels), read
        shown[sampler, count] = drawn


def tell(table, rows, columns):
    print(f"{'distance, recognised':>28}" + "".join(f"{f'{column} steps':>18}" for column in columns))
    for row in rows:
        cells = (f"{table[row, column][0]:10.1f} {100 * table[row, column][1]:4.0f} %" for column in columns)
        print(f"{row:>28}" + "".join(f"{cell:>18}" for cell in cells))


tell(table, SAMPLERS, COUNTS)

# %%
figure, axes = plt.subplots(figsize=(8, 3.4))
for sampler in SAMPLERS:
    style = "--" if sampler in ("euler", "dpmpp_2m") else "-"
    axes.loglog(COUNTS, [table[sampler, count][0] for count in COUNTS], "o" + style, label=sampler)
axes.set(xlabel="steps", ylabel="distance, grey levels", xticks=COUNTS, xticklabels=COUNTS)
axes.minorticks_off()
axes.legend(fontsize=8)
plt.show()

few = COUNTS[1]
show([goal_pictures[:10], *[shown[sampler, few][:10] for sampler in SAMPLERS]], [f"{many} steps", *SAMPLERS])

# %% [markdown]
# ## How fast to go
#
# An optimizer has a learning rate, and laws of how it changes. Here all steps together always go all of the way; the
# law says how it is divided. `levels` is what solvers do: as far as the noise level falls. `constant` goes equally far
# each time, `proportional` in proportion to the noise that is left, `cosine` slows down as when networks learn. The
# network is told the noise levels of the schedule each time, whatever has really been reached.

# %%
LAWS = ("levels", "proportional", "cosine", "constant")
count, laws = full_or_short(20, 3), {}
for law in LAWS:
    for sampler in SAMPLERS[2:]:
        pixels, _, read = draw(sampler=sampler, steps=count, rates=law)
        laws[law, sampler] = distance(pixels), read
print(f"{count} steps: distance, recognised")
print(f"{'':>14}" + "".join(f"{sampler:>18}" for sampler in SAMPLERS[2:]))
for law in LAWS:
    cells = (f"{laws[law, sampler][0]:10.1f} {100 * laws[law, sampler][1]:4.0f} %" for sampler in SAMPLERS[2:])
    print(f"{law:>14}" + "".join(f"{cell:>18}" for cell in cells))

# %% [markdown]
# ## Looking ahead instead of back
#
# Momentum averages over gradients that are out of date: the walk turns later than it should. What if the older gradient
# counts less than nothing? With `mu` below zero, momentum moves along the newest gradient, plus a part of how it has
# changed: it guesses where the gradient is going. With steps of equal size, Adams and Bashforth's rule of second order
# (1883) weighs the newest 3/2 and the one before -1/2.

# %%
from gradina.diffusion.optimizer_samplers import momentum
from gradina.pipeline.generate import decode_pictures
from gradina.pipeline.plan import plans


@torch.no_grad()
def draw_with(walk, **options):
    drawn = []
    for plan in plans(model, replace(request, sampler="momentum", steps=count)):
        *_, last = walk(plan.denoise, plan.x, plan.sigmas, plan.noise, **options)
        drawn += [picture.image for picture in decode_pictures(model, plan, last)]
    return torch.stack([to_pixels(image) for image in drawn])


weights = full_or_short((0.8, 0.5, 0.2, 0.0, -0.2, -0.35, -0.5, -0.65), (0.5, -0.35))
far = [distance(draw_with(momentum, mu=mu)) for mu in weights]
for mu, each in zip(weights, far, strict=True):
    print(f"mu {mu:5.2f}: {each:5.1f} grey levels from the goal, in {count} steps")
solver = distance(draw(sampler="dpmpp_2m", steps=count)[0])
figure, axes = plt.subplots(figsize=(8, 2.6))
axes.plot(weights, far, "o-", color="#c2571a", label="momentum")
axes.axhline(solver, color="#2b5c8a", linestyle="--", label="dpmpp_2m")
axes.set(xlabel="mu", ylabel="distance, grey levels")
axes.legend()
plt.show()

# %% [markdown]
# ## Noise put back
#
# Must the walk be straight down? Some samplers take away more noise than they should, and put new noise back: `eta`
# says how much, 0 none, 1 as much as there is on the way on which the network has learnt. There is no goal then to be
# far from, since other noise leads elsewhere; what can be counted is what is recognised.

# %%
ETAS = (0.0, 0.5, 1.0)
ancestral = {}
for sampler in ("sgd", "momentum", "nesterov", "adam", "dpmpp_2m_sde"):
    for eta in ETAS:
        ancestral[sampler, eta] = draw(sampler=sampler, steps=count, eta=eta)
print(f"recognised after {count} steps" + "".join(f"   eta {eta:g}" for eta in ETAS))
for sampler in ("sgd", "momentum", "nesterov", "adam", "dpmpp_2m_sde"):
    cells = "".join(f"{100 * ancestral[sampler, eta][2]:6.0f} %" for eta in ETAS)
    print(f"{sampler:>25}{cells}")
show([ancestral["sgd", eta][1][:10] for eta in ETAS], [f"sgd, eta {eta:g}" for eta in ETAS])

# %% [markdown]
# Two measures, and they need not agree: a walk that ends far from the goal may still end at a picture, only at another.
# The first says how exactly an equation was solved; the second, whether what came out is what was asked for.
#
# ## What has come out
#
# * Plain descent draws, and it is Euler's method. What helps networks to learn does not help here: momentum ends
#   further from the goal at every number of steps, and Nesterov's between the two. The gradient of a loss is noisy, and
#   a mean of many is better than one; here each is exact, and a mean of many is out of date. Memory pays the other way
#   round: with `mu` below zero, momentum comes near to `dpmpp_2m`, which is no more than that.
# * Adam does not draw at all, in however many steps. It makes all numbers move equally far, though how far each has to
#   move is just what the network says; noise is left.
# * How the way is divided matters more than who of the others walks it. As far as the noise level falls is by far the
#   nearest to the goal; `constant`, the furthest of all, is recognised at least as often.
# * Recognised are the pictures of five steps as often as those of a thousand, and with noise put back about as often as
#   without: once they show what was asked for, this measure sees no difference. The distance still does.
#
# ## What to try next
#
# * `gradina "a red apple" --sampler momentum --rates proportional` draws with all of these; `gradina tune` finds out
#   which are worth their time on your machine.
# * Adam divides by how large each number usually is, and slopes of different size become alike. Draw with other
#   `betas`, as `draw_with` does with `mu`.
# * A sampler is a function of fifteen lines. Write one that takes two gradients for each step, and compare it at equal
#   numbers of gradients.
