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
# # 3. The digit function: gradient ascent turns noise into digits
#
# Suppose we had a function that returns the probability that a picture is a handwritten digit: about 0 for noise,
# nearly 1 for a clean digit, something between for a noisy one. Then we could generate digits: start from noise,
# compute the gradient of the (logarithm of the) probability with respect to each pixel, change the pixels a little in
# its direction, and repeat. This is *gradient ascent* on the picture.
#
# Nobody gives us that function, so we train a network to be it: on digits (the target is 1), on noise (0), and on
# random mixtures of the two (the fraction of the digit). The code is in `digit.py`, beside this lesson.

# %%
import inspect
import time

import matplotlib.pyplot as plt
import torch
from digit import Digit, ascent, gradient, mix_with_noise, numerical_gradient, probability, train_digit
from handwriting import digits
from lesson import full_or_short

train, test = (digits(*split)[0][:, 0] for split in (("train", full_or_short(20_000, 2_000)), ("held out", 500)))
start = time.perf_counter()
plain = train_digit(train, steps=full_or_short(600, 60), adversarial=False)
print(f"{sum(p.numel() for p in plain.parameters()):,} parameters, trained in {time.perf_counter() - start:.0f} s")

# %%
key = torch.Generator().manual_seed(1)
mixed, fractions = mix_with_noise(test, key)
figure, axes = plt.subplots(figsize=(8, 2.8))
axes.scatter(fractions.numpy(), probability(plain, mixed).numpy(), s=4, color="#c2571a")
axes.set(xlabel="fraction of the digit", ylabel="predicted probability", title="Test digits mixed with noise")
plt.show()
error = (probability(plain, mixed) - fractions).abs().mean()
on_noise = probability(plain, torch.rand(500, 28, 28, generator=key)).mean()
print(f"mean absolute error {error:.3f}; mean probability of pure noise {on_noise:.3f}")

# %% [markdown]
# ## The gradient, in two ways
#
# There are 784 pixels. With finite differences we brighten one of them a little and evaluate the network again; then
# the next one. Automatic differentiation takes one forward and one backward pass (lesson 2).

# %%
fp64 = Digit().double()  # finite differences need the precision
fp64.load_state_dict(plain.state_dict())
picture = mixed[0].double()
start = time.perf_counter()
numerical, evaluations = numerical_gradient(fp64, picture)
middle = time.perf_counter()
analytic = gradient(fp64, picture[None])[0]
end = time.perf_counter()
difference = ((numerical - analytic).abs().max() / analytic.abs().max()).item()
print(f"finite differences: {evaluations} evaluations, {1000 * (middle - start):.0f} ms")
speedup = (middle - start) / (end - middle)
print(f"backward pass: 1 evaluation, {1000 * (end - middle):.1f} ms, {speedup:.0f} times as fast")
print(f"largest difference: {difference:.1e} of the largest element")
assert difference < 1e-3

# %% [markdown]
# ## Gradient ascent, and adversarial examples
#
# Multiply the gradient by a step size, add it to the picture, repeat:

# %%
print(inspect.getsource(ascent).split('"""')[2])

# %%
noise = torch.rand(10, 28, 28, generator=torch.Generator().manual_seed(2))


def trajectory(digit, stops):
    rows, step = [noise], 0
    for stop in stops:
        rows.append(ascent(digit, rows[-1], stop - step))
        step = stop
    return rows


def show(digit, rows):
    _, axes = plt.subplots(len(rows), len(noise), figsize=(9, 0.95 * len(rows)))
    for step, row, row_axes in zip((0, *stops), rows, axes, strict=True):
        for picture, ax in zip(row, row_axes, strict=True):
            ax.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        mean = probability(digit, row).mean()
        row_axes[0].set_ylabel(f"{step} steps, {mean:.2f}", rotation=0, ha="right", va="center")
    plt.show()


stops = full_or_short((20, 60, 160), (5, 10, 20))
rows = trajectory(plain, stops)
show(plain, rows)

# %% [markdown]
# On the left are the steps and the mean probability. The network is sure that these are digits, and we are sure that
# they are not: they are *adversarial examples*. It was trained on noise, on digits, and on mixtures of them, but never
# on what its own gradient leads to, and there its output is arbitrary.
#
# So we add them to the training: *adversarial training*. While the network learns, noise follows its gradient, and
# wherever that leads becomes a negative example (target 0). A *replay buffer* keeps these pictures, and their ascent
# goes on in later steps. The network can win this race in one way only: its gradient has to lead to digits (Du and
# Mordatch, 2019).

# %%
start = time.perf_counter()
adversarial = train_digit(train, steps=full_or_short(1500, 20))
seconds = time.perf_counter() - start
rows = trajectory(adversarial, stops)
show(adversarial, rows)

print(f"trained in {seconds:.0f} s")

# %% [markdown]
# Are they digits? One test is the distance of each from its *nearest neighbour* among the training digits, compared to
# that of test digits, on which the network was not trained.


# %%
def nearest(pictures):
    return torch.cdist(pictures.flatten(1), train.flatten(1)).min(1).values.mean().item()


for name, pictures in {
    "noise": noise,
    "plain training": trajectory(plain, stops)[-1],
    "adversarial training": rows[-1],
    "test digits": test[:100],
}.items():
    print(f"{name:>20}: {nearest(pictures):5.2f} from the nearest training digit")

# %% [markdown]
# ## The digit function as a service
#
# The function need not run on your computer. Others can use it over HTTP: they send a picture and get its probability
# or gradient, and so can make digits without having the network. `service.py` has two endpoints; this is a client.

# %%
import json
from urllib import error as errors
from urllib.request import Request, urlopen

from service import served, service


def post(url, **body):
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        return json.load(response)


with served(service(adversarial)) as url:
    picture = noise[0].tolist()
    print("noise:", post(f"{url}/digit/probability", picture=picture))
    for _ in range(full_or_short(60, 5)):
        grad = post(f"{url}/digit/gradient", picture=picture)["gradient"]
        picture = [
            [min(1.0, max(0.0, p + min(0.3, max(-0.3, 10 * g)))) for p, g in zip(*row, strict=True)]
            for row in zip(picture, grad, strict=True)
        ]
    print("after ascent:", post(f"{url}/digit/probability", picture=picture))
    numerical = post(f"{url}/digit/gradient", picture=picture, finite_differences=True)
    print("finite differences:", numerical["evaluations"], "evaluations")
    try:
        post(f"{url}/digit/probability", picture=[[0.5, 2.0]])
    except errors.HTTPError as error:
        print(error.code, json.load(error)["error"])

# %%
figure, ax = plt.subplots(figsize=(1.6, 1.6))
ax.imshow(picture, cmap="gray")
ax.axis("off")
plt.show()

# %% [markdown]
# ## What to try next
#
# * Start from a photo of your own handwriting, or from a digit half hidden, instead of noise.
# * Make the function *conditional*, so that it is told which digit it should be: how would you ask it for a three?
# * Adversarial training was costly: eight ascent steps for each training step. Lesson 4 does without it. If the
#   gradient is what we want, why not let the network predict the gradient?
