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
# # 3. The digit function: noise climbs uphill, and becomes a digit
#
# Suppose somebody gave us a function that says how probable it is that a picture is a handwritten digit. For noise it
# says 0, for a clean digit nearly 1, for a noisy one something between. Then we could make digits: take noise, ask
# which way each pixel has to go for the answer to rise, go there a little, and ask again.
#
# Nobody gives us that function, so a network learns it: from digits (the answer is 1), from noise (0), and from all
# mixtures of the two (as much as is left of the digit). The code is in `digit.py`, beside this lesson.

# %%
import inspect
import time

import matplotlib.pyplot as plt
import torch
from digit import Digit, ascent, gradient, mix_with_noise, numerical_gradient, probability, train_digit
from handwriting import digits
from lesson import full_or_short

seen, unseen = (digits(*part)[0][:, 0] for part in (("train", full_or_short(20_000, 2_000)), ("held out", 500)))
start = time.perf_counter()
first = train_digit(seen, steps=full_or_short(600, 60), adversarial=False)
print(f"{sum(p.numel() for p in first.parameters()):,} numbers, learnt in {time.perf_counter() - start:.0f} s")

# %%
key = torch.Generator().manual_seed(1)
mixed, left = mix_with_noise(unseen, key)
figure, axes = plt.subplots(figsize=(8, 2.8))
axes.scatter(left.numpy(), probability(first, mixed).numpy(), s=4, color="#c2571a")
axes.set(xlabel="how much is left of the digit", ylabel="what the function says", title="Unseen digits in noise")
plt.show()
error = (probability(first, mixed) - left).abs().mean()
print(f"off by {error:.3f} on average; noise: {probability(first, torch.rand(500, 28, 28, generator=key)).mean():.3f}")

# %% [markdown]
# ## Which way is up?
#
# There are 784 pixels. We can make one of them a little brighter, and see whether the answer rises; then the next one.
# Or the network remembers how it came to its answer, and goes back over it once (lesson 2).

# %%
exact = Digit().double()
exact.load_state_dict(first.state_dict())
picture = mixed[0].double()
start = time.perf_counter()
numerical, calls = numerical_gradient(exact, picture)
middle = time.perf_counter()
analytic = gradient(exact, picture[None])[0]
end = time.perf_counter()
apart = ((numerical - analytic).abs().max() / analytic.abs().max()).item()
print(f"by trying: {calls} calls, {1000 * (middle - start):.0f} ms")
print(f"by walking back: 1 call, {1000 * (end - middle):.1f} ms, {(middle - start) / (end - middle):.0f} times as fast")
print(f"largest difference: {apart:.1e} of the largest slope")
assert apart < 1e-3

# %% [markdown]
# ## Uphill, and deceived
#
# Multiply the gradient by a constant, add it to the picture, repeat:

# %%
print(inspect.getsource(ascent).split('"""')[2])

# %%
noise = torch.rand(10, 28, 28, generator=torch.Generator().manual_seed(2))


def path(digit, stops):
    rows, at = [noise], 0
    for stop in stops:
        rows.append(ascent(digit, rows[-1], stop - at))
        at = stop
    return rows


def show(digit, rows):
    _, places = plt.subplots(len(rows), len(noise), figsize=(9, 0.95 * len(rows)))
    for step, row, along in zip((0, *stops), rows, places, strict=True):
        for picture, place in zip(row, along, strict=True):
            place.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
        said = probability(digit, row).mean()
        along[0].set_ylabel(f"{step} steps, {said:.2f}", rotation=0, ha="right", va="center")
    plt.show()


stops = full_or_short((20, 60, 160), (5, 10, 20))
rows = path(first, stops)
show(first, rows)

# %% [markdown]
# The function is sure that these are digits, and we are sure that they are not. It has seen noise, digits, and what
# lies straight between. It has never seen what its own gradient leads to, and there it may say what it likes.
#
# So we show it: while it learns, noise climbs its gradient, and wherever that arrives it is told "this is none". The
# pictures that deceived it yesterday go on climbing today. It is a race, and there is but one way for the function to
# win it: uphill has to lead to digits (Du and Mordatch, 2019).

# %%
start = time.perf_counter()
second = train_digit(seen, steps=full_or_short(1500, 20))
taken = time.perf_counter() - start
rows = path(second, stops)
show(second, rows)

print(f"learnt in {taken:.0f} s")

# %% [markdown]
# Are they digits? One way to ask: how far is each from the nearest of all digits that the function was shown, beside
# digits that it was not?


# %%
def nearest(pictures):
    return torch.cdist(pictures.flatten(1), seen.flatten(1)).min(1).values.mean().item()


for name, pictures in {
    "noise": noise,
    "uphill, deceived": path(first, stops)[-1],
    "uphill": rows[-1],
    "unseen digits": unseen[:100],
}.items():
    print(f"{name:>18}: {nearest(pictures):5.2f} from the nearest digit")

# %% [markdown]
# ## Somewhere else
#
# The function need not be here. Whoever has it can offer it to others, who send a picture and get an answer; they can
# make digits without ever seeing a network. `service.py` puts it behind two addresses; this is a client.

# %%
import json
from urllib import error as failures
from urllib.request import Request, urlopen

from service import served, service


def ask(address, **body):
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


with served(service(second)) as address:
    picture = noise[0].tolist()
    print("noise:", ask(f"{address}/digit/probability", picture=picture))
    for _ in range(full_or_short(60, 5)):
        gradients = ask(f"{address}/digit/gradient", picture=picture)["gradient"]
        picture = [
            [min(1.0, max(0.0, p + min(0.3, max(-0.3, 10 * s)))) for p, s in zip(*both, strict=True)]
            for both in zip(picture, gradients, strict=True)
        ]
    print("uphill:", ask(f"{address}/digit/probability", picture=picture))
    print("by trying:", ask(f"{address}/digit/gradient", picture=picture, by_trying=True)["calls"], "calls")
    try:
        ask(f"{address}/digit/probability", picture=[[0.5, 2.0]])
    except failures.HTTPError as error:
        print(error.code, json.load(error)["error"])

# %%
figure, place = plt.subplots(figsize=(1.6, 1.6))
place.imshow(picture, cmap="gray")
place.axis("off")
plt.show()

# %% [markdown]
# ## What to try next
#
# * Start from a photo of your own handwriting, or from a digit half hidden, in place of noise.
# * A function that is told *which* digit it should be: how would you ask it for a three?
# * The race was costly: eight climbs for each lesson learnt. Lesson 4 does without it. If the gradient is what we want,
#   why not let the network say the gradient?
