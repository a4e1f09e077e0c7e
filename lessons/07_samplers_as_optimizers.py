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
# Lesson 3 climbed the gradient of a function; in lesson 4 sampling removed the noise that a network predicts. Both
# follow a gradient. The predicted noise is, up to a factor, the gradient of the distance to the training pictures; in
# the terms of diffusion models it is -sigma times the score, the gradient of the log-density of noisy pictures. So
# sampling is gradient descent, and the optimizers that train networks should be able to draw. Most samplers come from
# elsewhere: they are solvers of differential equations (ODEs and SDEs). Which draw better?
#
# The shipped model draws, and the pictures are judged in two ways. First, the error: how far, on average, is a picture
# from the reference, which a solver reaches from the same noise in very many small steps? Second, how many pictures are
# recognised? Here lesson 6's CLIP classifies each among all 320 things.

# %%
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from lesson import full_or_short, show

import gradina
from gradina.images.tensor import to_pixels
from gradina.tasks.retrieval import embed_pictures, embed_texts, open_pair

model, clip = gradina.load("emoji", dtype="fp32"), open_pair("emoji")
things = clip.phrases[0][: full_or_short(16, 1)]
request = gradina.Request(prompt=tuple(f"{thing} in noto style" for thing in things), seed=1)
class_embeddings = embed_texts(clip, clip.phrases[0])


def draw(**settings):
    """Pixels (n, 3, h, w), the same as images, and the share of them that is recognised."""
    images = [picture.image for picture in gradina.generate(model, replace(request, **settings))]
    classes = (embed_pictures(clip, images) @ class_embeddings.T).argmax(1)
    recognised = (classes == torch.arange(len(things))).float().mean().item()
    return torch.stack([to_pixels(image) for image in images]), images, recognised


many, start = full_or_short(1000, 12), time.perf_counter()
reference, reference_images, recognised = draw(sampler="dpmpp_2m", steps=many)
seconds = time.perf_counter() - start
print(f"{len(things)} pictures of {many} steps in {seconds:.0f} s; recognised: {100 * recognised:.0f} %")


def rms_error(pixels):
    """Root mean square difference to the reference over all pixels, in grey levels of 255."""
    return ((pixels - reference) ** 2).mean().sqrt().item() * 127.5


# %% [markdown]
# ## Four optimizers and two solvers
#
# * `sgd`: gradient descent. The learning rate of each step is the decrease of sigma, the noise level; this is Euler's
#   method, to the last bit.
# * `momentum`: along the average of the gradients so far, in which older ones weigh exponentially less.
# * `nesterov`: the same, with the newest gradient counted once more.
# * `adam`: the average gradient, each element divided by its root mean square.
# * `euler`, and `dpmpp_2m`: DPM-Solver++(2M), a multistep solver that also uses the previous step, common in many
#   programs.

# %%
STEP_COUNTS = full_or_short((5, 10, 20, 50), (2, 3))
SAMPLERS = ("euler", "dpmpp_2m", "sgd", "momentum", "nesterov", "adam")
results, images = {}, {}
for sampler in SAMPLERS:
    for count in STEP_COUNTS:
        pixels, images[sampler, count], recognised = draw(sampler=sampler, steps=count)
        results[sampler, count] = rms_error(pixels), recognised


def print_table(results, rows, columns):
    print(f"{'RMS error, recognised':>28}" + "".join(f"{f'{column} steps':>18}" for column in columns))
    for row in rows:
        cells = (f"{results[row, column][0]:10.1f} {100 * results[row, column][1]:4.0f} %" for column in columns)
        print(f"{row:>28}" + "".join(f"{cell:>18}" for cell in cells))


print_table(results, SAMPLERS, STEP_COUNTS)

# %%
figure, axes = plt.subplots(figsize=(8, 3.4))
for sampler in SAMPLERS:
    style = "--" if sampler in ("euler", "dpmpp_2m") else "-"
    axes.loglog(STEP_COUNTS, [results[sampler, count][0] for count in STEP_COUNTS], "o" + style, label=sampler)
axes.set(xlabel="steps", ylabel="RMS error, grey levels", xticks=STEP_COUNTS, xticklabels=STEP_COUNTS)
axes.minorticks_off()
axes.legend(fontsize=8)
plt.show()

few = STEP_COUNTS[1]
show([reference_images[:10], *[images[sampler, few][:10] for sampler in SAMPLERS]], [f"{many} steps", *SAMPLERS])

# %% [markdown]
# ## Learning-rate schedules
#
# An optimizer has a learning rate, and often a schedule that changes it. Here the rates of all steps always sum to the
# whole way from the first sigma to 0; the schedule only divides it. `levels` is what solvers do: the decrease of sigma.
# `constant` makes all rates equal, `proportional` makes them proportional to sigma, and `cosine` decays as in training.
# The network is always given the sigmas of the noise schedule, whatever noise level x has really reached.

# %%
RATES = ("levels", "proportional", "cosine", "constant")
count, results_by_rates = full_or_short(20, 3), {}
for rates in RATES:
    for sampler in SAMPLERS[2:]:
        pixels, _, recognised = draw(sampler=sampler, steps=count, rates=rates)
        results_by_rates[rates, sampler] = rms_error(pixels), recognised
print(f"{count} steps: RMS error, recognised")
print(f"{'':>14}" + "".join(f"{sampler:>18}" for sampler in SAMPLERS[2:]))
for rates in RATES:
    row = [results_by_rates[rates, sampler] for sampler in SAMPLERS[2:]]
    cells = (f"{error:10.1f} {100 * recognised:4.0f} %" for error, recognised in row)
    print(f"{rates:>14}" + "".join(f"{cell:>18}" for cell in cells))

# %% [markdown]
# ## Negative momentum: extrapolation
#
# Momentum averages gradients that are out of date, so the trajectory turns later than it should. What if older
# gradients get a negative weight? With `mu` below zero, momentum moves along the newest gradient plus a part of its
# latest change: it extrapolates where the gradient is going. So do multistep solvers: with steps of equal size, the
# second-order method of Adams and Bashforth (1883) weights the newest gradient 3/2 and the previous one -1/2.

# %%
from gradina.diffusion.optimizer_samplers import momentum
from gradina.pipeline.generate import decode_pictures
from gradina.pipeline.plan import plans


@torch.no_grad()
def draw_with(sampler, **options):
    images = []
    for plan in plans(model, replace(request, sampler="momentum", steps=count)):
        *_, last = sampler(plan.denoise, plan.x, plan.sigmas, plan.noise, **options)
        images += [picture.image for picture in decode_pictures(model, plan, last)]
    return torch.stack([to_pixels(image) for image in images])


mus = full_or_short((0.8, 0.5, 0.2, 0.0, -0.2, -0.35, -0.5, -0.65), (0.5, -0.35))
errors = [rms_error(draw_with(momentum, mu=mu)) for mu in mus]
for mu, error in zip(mus, errors, strict=True):
    print(f"mu {mu:5.2f}: RMS error {error:5.1f} grey levels, {count} steps")
solver_error = rms_error(draw(sampler="dpmpp_2m", steps=count)[0])
figure, axes = plt.subplots(figsize=(8, 2.6))
axes.plot(mus, errors, "o-", color="#c2571a", label="momentum")
axes.axhline(solver_error, color="#2b5c8a", linestyle="--", label="dpmpp_2m")
axes.set(xlabel="mu", ylabel="RMS error, grey levels")
axes.legend()
plt.show()

# %% [markdown]
# ## Ancestral sampling: adding noise
#
# An ODE solver adds no noise after the start. Ancestral samplers and SDE solvers remove more noise than the next sigma
# asks for, then add fresh noise: `eta` says how much, 0 none, 1 as much as DDPM, which reverses the noising process of
# training step by step. Fresh noise leads to other pictures, so there is no reference to measure an error against;
# recognition still counts.

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
# The two measures need not agree: a sampler with a large error may still end at a good picture, only another one. The
# first says how exactly an equation was solved, the second whether the picture shows what the prompt asks for.
#
# ## Results
#
# * Plain gradient descent works, and is Euler's method. What helps in training does not help here: momentum has a
#   larger error at every number of steps, and Nesterov's lies between the two. In training, gradients are noisy, and an
#   average of many is better than one; here each is exact, and an average is out of date. Earlier gradients help the
#   other way round: with negative `mu`, momentum comes near to `dpmpp_2m`, which is the same kind of extrapolation.
# * Adam does not work with any number of steps. It gives all elements about the same step length, although how far each
#   has to move is just what the network predicts; noise is left.
# * Except for Adam, the learning-rate schedule matters more than the optimizer. `levels`, the decrease of sigma, has by
#   far the smallest error; `constant`, with the largest, is recognised at least as often.
# * Pictures of five steps are recognised as often as those of a thousand, and with added noise about as often as
#   without: once a picture shows what was asked for, this measure sees no difference. The error still does.
#
# ## What to try next
#
# * `gradina "a red apple" --sampler momentum --rates proportional` draws with all of these; `gradina tune` finds out
#   which are worth their time on your machine.
# * Adam divides by each element's root mean square gradient, which equalises steep and flat directions. Try other
#   `betas`, as `draw_with` does with `mu`.
# * A sampler is a function of fifteen lines. Write one that evaluates the network twice per step, and compare it at an
#   equal number of evaluations.
