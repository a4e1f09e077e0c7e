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
# All the parts are there now: tokenizer, text encoder, U-Net, sampler, autoencoder. `gradina "..."` puts them together.
# Here we do it by hand, part by part, and end with the same picture.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from lesson import full_or_short

import gradina
from gradina.images.tensor import to_pixels

model = gradina.load("emoji", dtype="fp32", plain=True)
prompt, seed, steps = "a penguin in noto style on a pink background", 1024, full_or_short(20, 4)


def show(images, titles, size=1.15):
    _, axes = plt.subplots(1, len(images), figsize=(min(9, size * len(images)), 1.5), squeeze=False)
    for ax, image, title in zip(axes[0], images, titles, strict=True):
        ax.imshow(image)
        ax.set_title(title, fontsize=8)
        ax.axis("off")
    plt.show()


# %% [markdown]
# ## 1. Tokenizer: prompt to token ids
#
# The tokenizer has a vocabulary of tokens: frequent words are one token, others are composed of several (byte-pair
# encoding, BPE). A start token and an end token enclose the text, and padding fills it up to a fixed length.

# %%
ids = model.tokenizer([prompt, ""])
tokens = [model.tokenizer.decode([i]) for i in model.tokenizer.ids(prompt)]
print(f"vocabulary: {len(model.tokenizer):,} tokens; this prompt has {len(tokens)}")
for token, i in zip(tokens, ids[0, 1:].tolist(), strict=False):
    print(f"{i:6}  {token}")

# %% [markdown]
# ## 2. Text encoder: token ids to hidden states
#
# The text encoder turns each token into a vector, its hidden state, that also depends on the tokens before it. The
# U-Net reads all of these, not one embedding of the whole text. The second text is empty: it is the condition of the
# unconditional prediction, "any picture".

# %%
with torch.no_grad():
    states = model.text(ids)
print(f"hidden states: {tuple(states.shape)}: texts, tokens, features")
figure, ax = plt.subplots(figsize=(9, 2.6))
ax.imshow(states[0, : len(tokens) + 2, :160].numpy(), aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
ax.set(yticks=range(len(tokens) + 2), xlabel="the first 160 features of each hidden state")
ax.set_yticklabels(["<start>", *tokens, "<end>"], fontsize=7)
plt.show()

# %% [markdown]
# ## 3. Noise schedule: timesteps and sigmas
#
# The model was trained at a thousand timesteps t, each with its noise level sigma. Sampling needs only a few of them,
# and there is more than one good choice. Left, sigma at all timesteps; right, the sigmas of 20 steps in some schedules.

# %%
from gradina.diffusion.schedule import sampling_sigmas

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
left.semilogy(range(1, 1001), model.schedule.sigmas.numpy(), color="#c2571a")
left.set(xlabel="timestep t", ylabel="sigma")
for name in ("trailing", "leading", "karras", "exponential"):
    sigmas = sampling_sigmas(model.schedule, name, 20)
    right.semilogy(range(20), sigmas[:20].numpy(), ".-", label=name)
right.set(xlabel="step")
right.legend(fontsize=8)
plt.show()
sigmas = sampling_sigmas(model.schedule, model.defaults.schedule, steps)
print(f"{model.defaults.schedule}: " + ", ".join(f"{sigma:.2f}" for sigma in sigmas.tolist()))

# %% [markdown]
# ## 4. U-Net: classifier-free guidance
#
# The seed gives the initial noise, scaled by the first sigma. At each step the U-Net is called twice: with the prompt
# (cond) and with the empty text (uncond). The difference is what the prompt contributes. Classifier-free guidance (CFG)
# adds it, times the guidance scale, to the unconditional prediction.
#
# This network predicts the velocity v, a mixture of noise and picture. Both the denoised latents and the predicted
# noise follow from it; `Denoiser` does that arithmetic.

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
prompt_cond, empty_cond = Cond(states[:1]), Cond(states[1:])
with torch.no_grad():
    cond, uncond = denoiser(x, sigmas[0], prompt_cond), denoiser(x, sigmas[0], empty_cond)
difference = (cond - uncond)[0].abs().mean(0)
print(f"pure noise, sigma {sigmas[0]:.1f}: standard deviation of cond - uncond {(cond - uncond).std():.3f},")
print(f"of cond itself {cond.std():.3f}")
decoded = model.decode(torch.cat([uncond, cond, uncond + scale * (cond - uncond)]))
show([*decoded, difference.numpy()], ["uncond", "cond", f"guidance scale {scale:g}", "|cond - uncond|"], 1.8)

# %% [markdown]
# From pure noise, the best prediction is the mean of all pictures with such a caption.
#
# ## 5. Sampler: the denoising loop
#
# Now the same at each step. After each prediction, part of the noise is removed, so that as much is left as the next
# sigma says. Here the sampler is Euler's method, the simplest ODE solver: a straight step towards the denoised latents.

# %%
trajectory = []
with torch.no_grad():
    for sigma, sigma_next in pairwise(sigmas):
        cond, uncond = denoiser(x, sigma, prompt_cond), denoiser(x, sigma, empty_cond)
        denoised = uncond + scale * (cond - uncond)
        eps = (x - denoised) / sigma
        trajectory.append((float(sigma), x, denoised, eps, cond - uncond))
        x = denoised + (sigma_next / sigma).float() * (x - denoised)
by_hand = model.decode(x)[0]

shown = [trajectory[i] for i in sorted({round(k * (steps - 1) / 6) for k in range(7)})]
titles = [f"sigma {sigma:.2f}" for sigma, *_ in shown]
show([model.decode(x / (1 + sigma**2) ** 0.5)[0] for sigma, x, *_ in shown], titles)
show([model.decode(denoised)[0] for _, _, denoised, _, _ in shown], ["denoised"] * len(shown))
show(
    [eps[0, :3].permute(1, 2, 0).clamp(-2, 2).numpy() / 4 + 0.5 for _, _, _, eps, _ in shown],
    ["predicted noise"] * len(shown),
)
show([change[0].abs().mean(0).numpy() for *_, change in shown], ["|cond - uncond|"] * len(shown))

# %% [markdown]
# From above: the noisy latents, decoded as if they were clean; the denoised latents, decoded; the predicted noise
# (three of four channels, as colours); and where the prompt matters, which is everywhere in the beginning, and later
# where there is still something to decide.

# %%
figure, ax = plt.subplots(figsize=(8, 2.6))
changes = [(after[2] - before[2]).std() for before, after in pairwise(trajectory)]
ax.plot(range(1, steps), changes, "o-", color="#c2571a", label="change of denoised since the previous step")
ax.plot([each[4].std() for each in trajectory], "o-", color="#2b5c8a", label="cond - uncond")
ax.set(xlabel="step", ylabel="standard deviation")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 6. Cross-attention: which token matters where
#
# In the U-Net's cross-attention layers, each position of the latents has a query, and each token a key. The softmax of
# their dot products gives attention weights, which sum to 1 over the tokens of each position. A hook can read them
# during the forward pass. Here is their mean over the heads and over all layers at 8 x 8 positions, the finest
# resolution at which this U-Net has cross-attention, after a third of the steps.

# %%
from gradina.models.unet import TransformerBlock


def attention_weights(denoiser, x, sigma, cond):
    """The mean over heads and layers: (positions, tokens)."""
    found = []

    def hook(block, inputs):
        attention, (x, context) = block.cross_attn, inputs
        q, k = attention._split(attention.q(block.norm2(x))), attention._split(attention.k(context))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[0].mean(0)  # (positions, tokens)
        found.append(weights)

    handles = [
        block.register_forward_pre_hook(hook) for block in model.unet.modules() if isinstance(block, TransformerBlock)
    ]
    with torch.no_grad():
        denoiser(x, sigma, cond)
    for handle in handles:
        handle.remove()
    finest = max(map(len, found))
    return torch.stack([weights for weights in found if len(weights) == finest]).mean(0)


middle = steps // 3
weights = attention_weights(denoiser, trajectory[middle][1], sigmas[middle], prompt_cond)
maps = weights.T.reshape(weights.shape[1], *[round(len(weights) ** 0.5)] * 2)
labels = ["<start>", *tokens, "<end>"]
columns = 7
rows = -(-(len(labels) + 1) // columns)
figure, axes = plt.subplots(rows, columns, figsize=(9, 1.45 * rows))
for ax in axes.flat:
    ax.axis("off")
axes.flat[0].imshow(by_hand)
for ax, label, attention_map in zip(axes.flat[1:], labels, maps, strict=False):
    ax.imshow(attention_map.numpy(), cmap="magma", interpolation="bicubic")
    ax.set_title(f"{label}\n{100 * attention_map.mean():.0f} %", fontsize=8)
plt.show()
print(f"attention to the padding tokens: {100 * maps[len(labels) :].mean((1, 2)).sum():.0f} %")
# %% [markdown]
# ## 7. VAE decoder, and the same in one line
#
# The last latents go through the decoder of the autoencoder (VAE) of lesson 5. And this is all that `gradina.generate`
# does:

# %%
request = gradina.Request(prompt=prompt, seed=seed, steps=steps, sampler="euler")
(in_one_line,) = gradina.generate(model, request)
show([by_hand, in_one_line.image], ["by hand", "in one line"], 1.8)
difference = (to_pixels(by_hand) - to_pixels(in_one_line.image)).abs().max() * 127.5
print(f"the two pictures differ by at most {difference:.0f} of 255 grey levels")

# %% [markdown]
# To watch the sampling, or to intervene, none of this has to be written again: `gradina.steps` yields each step, and
# `model.decode(step.denoised)` shows it.

# %%
previews = [(step.sigma, model.decode(step.denoised)[0]) for step in gradina.steps(model, request)]
some = previews[:: max(1, steps // 7)]
show([image for _, image in some], [f"sigma {sigma:.1f}" for sigma, _ in some])

# %% [markdown]
# ## What to try next
#
# * Change the prompt halfway: use the hidden states of another one from step 5 on. What has been decided by then?
# * Apply guidance only at medium sigmas (a guidance interval). Does the picture get better or worse?
# * Ablate a token: replace its hidden state by that of the empty text. Did the attention map say how much it matters?
# * Everything here works with any model: `gradina.load("path/to/stable-diffusion")`.
