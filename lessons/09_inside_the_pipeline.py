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
# # 9. Inside the pipeline
#
# Everything is there now: a network that says the noise, an autoencoder, words, and ways to walk. `gradina "..."` puts
# them together. Here they are put together by hand, each in the open, and in the end both pictures are the same.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from lesson import full_or_short

import gradina
from gradina.images.tensor import to_pixels

model = gradina.load("emoji", dtype="fp32", plain=True)
prompt, seed, steps = "a penguin in noto style on a pink background", 1024, full_or_short(20, 4)


def show(pictures, titles, size=1.15):
    _, places = plt.subplots(1, len(pictures), figsize=(min(9, size * len(pictures)), 1.5), squeeze=False)
    for place, picture, title in zip(places[0], pictures, titles, strict=True):
        place.imshow(picture)
        place.set_title(title, fontsize=8)
        place.axis("off")
    plt.show()


# %% [markdown]
# ## 1. The prompt becomes tokens
#
# The tokenizer knows some words whole and makes the others of pieces. A token says that the text begins, one that it
# ends, and the rest is filled up, so that all texts are equally long.

# %%
ids = model.tokenizer([prompt, ""])
pieces = [model.tokenizer.decode([i]) for i in model.tokenizer.ids(prompt)]
print(f"{len(model.tokenizer):,} pieces are known; this prompt takes {len(pieces)}")
for piece, i in zip(pieces, ids[0, 1:].tolist(), strict=False):
    print(f"{i:6}  {piece}")

# %% [markdown]
# ## 2. The tokens become states
#
# The text tower gives each token a row of numbers that depends on the tokens before it. All these rows, not only one
# for the whole text, are what the U-Net reads. The second text is empty: it stands for "any picture".

# %%
with torch.no_grad():
    states = model.text(ids)
print(f"states: {tuple(states.shape)}: texts, tokens, numbers for each")
figure, place = plt.subplots(figsize=(9, 2.6))
place.imshow(states[0, : len(pieces) + 2, :160].numpy(), aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
place.set(yticks=range(len(pieces) + 2), xlabel="the first 160 numbers of each state")
place.set_yticklabels(["begin", *pieces, "end"], fontsize=7)
plt.show()

# %% [markdown]
# ## 3. How much noise, and when
#
# The model has learnt noise in a thousand amounts. To draw, a few of them are enough; which ones is a choice, and there
# is more than one good one. Left, all of them; right, at which of them some schedules stop.

# %%
from gradina.diffusion.schedule import sampling_sigmas

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
left.semilogy(range(1, 1001), model.schedule.sigmas.numpy(), color="#c2571a")
left.set(xlabel="t", ylabel="sigma")
for name in ("trailing", "leading", "karras", "exponential"):
    sigmas = sampling_sigmas(model.schedule, name, 20)
    right.semilogy(range(20), sigmas[:20].numpy(), ".-", label=name)
right.set(xlabel="step")
right.legend(fontsize=8)
plt.show()
sigmas = sampling_sigmas(model.schedule, model.defaults.schedule, steps)
print(f"{model.defaults.schedule}: " + ", ".join(f"{sigma:.2f}" for sigma in sigmas.tolist()))

# %% [markdown]
# ## 4. Noise, and the network asked twice
#
# A seed gives the noise with which everything begins; it is as large as the first sigma says. The U-Net is asked twice
# each time: what is in it, if the prompt is true; and what, if nothing is known. The difference is what the words do.
# Guidance adds it several times.
#
# This network says the velocity: a mixture of noise and picture. From it follow both, the picture that it guesses and
# the noise that it sees; `Denoiser` does that arithmetic.

# %%
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser
from gradina.diffusion.noise import Noise
from gradina.diffusion.prediction import prediction_named

denoiser = Denoiser(model.network(), model.schedule, prediction_named(model.prediction))
side = model.defaults.width // model.vae.config.factor
noise = Noise([seed], (4, side, side))
x = sigmas[0].float() * noise()
scale = model.defaults.guidance_scale
cond, uncond = Cond(states[:1]), Cond(states[1:])
with torch.no_grad():
    told, untold = denoiser(x, sigmas[0], cond), denoiser(x, sigmas[0], uncond)
difference = (told - untold)[0].abs().mean(0)
print(f"pure noise at sigma {sigmas[0]:.1f}: the words change the guess by {(told - untold).std():.3f}")
print(f"where the guess itself has a spread of {told.std():.3f}")
guesses = model.decode(torch.cat([untold, told, untold + scale * (told - untold)]))
show([*guesses, difference.numpy()], ["nothing known", "told", f"guided, {scale:g} times", "difference"], 1.8)

# %% [markdown]
# The first guess, of nothing but noise, cannot be more than what pictures with such words are on average.
#
# ## 5. The walk
#
# Now the same again and again. After each guess, part of the noise is taken away, as much as the next sigma asks for;
# here in the simplest way, Euler's: straight towards the guess.

# %%
course = []
with torch.no_grad():
    for sigma, to in pairwise(sigmas):
        told, untold = denoiser(x, sigma, cond), denoiser(x, sigma, uncond)
        guess = untold + scale * (told - untold)
        seen_noise = (x - guess) / sigma
        course.append((float(sigma), x, guess, seen_noise, told - untold))
        x = guess + (to / sigma).float() * (x - guess)
by_hand = model.decode(x)[0]

shown = sorted({round(k * (steps - 1) / 6) for k in range(7)})
titles = [f"sigma {course[i][0]:.2f}" for i in shown]
show([model.decode(course[i][1] / (1 + course[i][0] ** 2) ** 0.5)[0] for i in shown], titles)
show([model.decode(course[i][2])[0] for i in shown], ["guess"] * len(shown))
show(
    [course[i][3][0, :3].permute(1, 2, 0).clamp(-2, 2).numpy() / 4 + 0.5 for i in shown], ["noise it sees"] * len(shown)
)
show([course[i][4][0].abs().mean(0).numpy() for i in shown], ["words change"] * len(shown))

# %% [markdown]
# From above: the noisy latents, decoded as if they were clean; the picture that the network guesses behind the noise;
# the noise that it sees (three of four channels, as colours); and where the words matter, which is everywhere in the
# beginning, and later where there is still something to decide.

# %%
figure, place = plt.subplots(figsize=(8, 2.6))
changes = [(after[2] - before[2]).std() for before, after in pairwise(course)]
place.plot(range(1, steps), changes, "o-", color="#c2571a", label="how much the guess changes from step to step")
place.plot([each[4].std() for each in course], "o-", color="#2b5c8a", label="how much the words change it")
place.set(xlabel="step")
place.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 6. Where each word is looked at
#
# Inside the U-Net, each place of the picture asks the words: how much does each of you have to say to me? The answers
# are shares that sum up to 1 (softmax of dot products). They can be read on the way: here the mean over all layers that
# look from 8 x 8 places, the finest that this U-Net asks from, a third of the way down.

# %%
from gradina.models.unet import TransformerBlock


def shares_of(denoiser, x, sigma, cond):
    found = []

    def listen(block, given):
        attention, (asking, context) = block.cross_attn, given
        q, k = attention._split(attention.q(block.norm2(asking))), attention._split(attention.k(context))
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[0].mean(0)  # (places, tokens)
        found.append(share)

    hooks = [
        block.register_forward_pre_hook(listen) for block in model.unet.modules() if isinstance(block, TransformerBlock)
    ]
    with torch.no_grad():
        denoiser(x, sigma, cond)
    for hook in hooks:
        hook.remove()
    finest = max(map(len, found))
    return torch.stack([share for share in found if len(share) == finest]).mean(0)


middle = steps // 3
shares = shares_of(denoiser, course[middle][1], sigmas[middle], cond)
maps = shares.T.reshape(shares.shape[1], *[round(len(shares) ** 0.5)] * 2)
labels = ["begin", *pieces, "end"]
columns = 7
rows = -(-(len(labels) + 1) // columns)
figure, places = plt.subplots(rows, columns, figsize=(9, 1.45 * rows))
for place in places.flat:
    place.axis("off")
places.flat[0].imshow(by_hand)
for place, label, each in zip(places.flat[1:], labels, maps, strict=False):
    place.imshow(each.numpy(), cmap="magma", interpolation="bicubic")
    place.set_title(f"{label}\n{100 * each.mean():.0f} %", fontsize=8)
plt.show()
print(f"the rest, {100 * maps[len(labels) :].mean((1, 2)).sum():.0f} %, looks at what fills the text up")
# %% [markdown]
# ## 7. The decoder, and the same in one line
#
# The last guess goes through the decoder of lesson 5. And this is all that `gradina.generate` does:

# %%
request = gradina.Request(prompt=prompt, seed=seed, steps=steps, sampler="euler")
(in_one_line,) = gradina.generate(model, request)
show([by_hand, in_one_line.image], ["by hand", "in one line"], 1.8)
apart = (to_pixels(by_hand) - to_pixels(in_one_line.image)).abs().max() * 127.5
print(f"the two pictures differ by at most {apart:.0f} of 255 grey levels")

# %% [markdown]
# To look on while a picture is drawn, or to interfere, nothing of this has to be written again: `gradina.steps` yields
# each step, and `model.decode(step.denoised)` shows it.

# %%
seen = [(step.sigma, model.decode(step.denoised)[0]) for step in gradina.steps(model, request)]
show(
    [picture for _, picture in seen[:: max(1, steps // 7)]],
    [f"{sigma:.1f}" for sigma, _ in seen[:: max(1, steps // 7)]],
)

# %% [markdown]
# ## What to try next
#
# * Ask for something else halfway: take the states of another prompt from step 5 on. What of the picture is decided by
#   then?
# * Guide only in the middle of the walk. Does the picture get better or worse?
# * Leave one token out, by putting the state of the empty text in its place. Does the map say which one mattered?
# * Everything here works with any model: `gradina.load("path/to/stable-diffusion")`.
