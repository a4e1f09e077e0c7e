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
# # 4. A network that says the noise
#
# Lesson 3 taught a function at great cost, only to follow its gradient. Yet we know where that gradient has to lead: a
# noisy digit is a digit, plus noise, and it was we who added the noise. So let the network say the noise itself. The
# error is the mean square of what it gets wrong; there is no race, and nobody is deceived.

# %%
import time

import matplotlib.pyplot as plt
import torch
from handwriting import accuracy, digits, one_hot, sample, train_recogniser
from lesson import full_or_short, show

from gradina.diffusion.schedule import sd_schedule

pictures, kinds = digits("train", full_or_short(60_000, 500))
clean = 2 * pictures - 1  # black is -1, white is 1
schedule = sd_schedule()
key = torch.Generator().manual_seed(0)
amounts = torch.tensor([0.0, 0.3, 1.0, 3.0, 10.0])
noise = torch.randn(5, 1, 28, 28, generator=key)
_, places = plt.subplots(1, 5, figsize=(9, 2))
for picture, amount, place in zip(clean[7] + amounts.view(-1, 1, 1, 1) * noise, amounts, places, strict=True):
    place.imshow(picture[0].numpy(), cmap="gray")
    place.set_title(f"noise times {amount:g}", fontsize=9)
    place.axis("off")
plt.show()

# %% [markdown]
# How much noise? Very little up to very much, and everything between. The original papers draw a number t from 1 to
# 1000 and look up the amount, sigma, on a curve that they call the schedule. One may as well speak of sigma itself.

# %%
figure, axes = plt.subplots(figsize=(8, 2.6))
axes.semilogy(range(1, 1001), schedule.sigmas.numpy(), color="#c2571a")
axes.set(xlabel="t", ylabel="sigma", title=f"from {schedule.sigmas[0]:.3f} to {schedule.sigmas[-1]:.1f}")
plt.show()

# %% [markdown]
# ## The U-Net
#
# The network is Stable Diffusion's U-Net, only smaller: it looks at the picture at 28, 14 and 7 places a side.
# What text is to Stable Diffusion is here one row of ten numbers: a 1 for the digit that the picture shows. One time in
# ten the row is empty, so that the network also knows what digits are in general.
#
# Does it need that row? And does it have to be told how much noise there is? The lecturer of the course that this
# follows doubts it: a glance at the picture shows how noisy it is. So four networks: with and without the digit, with
# and without t.

# %%
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import PREDICTIONS
from gradina.models.unet import UNet, UNetConfig
from gradina.training.data.dataset import generator
from gradina.training.loop import Settings, State, train
from gradina.training.losses import denoising, draw_sigmas

settings = Settings(steps=full_or_short(600, 3), batch=full_or_short(32, 8), lr=1e-3, ema=0.99, precision="bfloat16")


def learn(data, conditional, time, widths):
    torch.manual_seed(0)
    channels, side = data.shape[1], data.shape[2]
    shape = UNetConfig(
        channels=channels, out_channels=channels, widths=widths, attention=(False,) + (True,) * (len(widths) - 1),
        heads=(4,) * len(widths), blocks=1, groups=8, context=10, time=time, size=side,
    )  # fmt: skip

    def loss(network, k):
        key = generator("lesson 4", k)  # the same pictures, noise and amounts for each of the networks
        rows = torch.randint(len(data), (settings.batch,), generator=key)
        cond = Cond(one_hot(kinds[rows], conditional & (torch.rand(settings.batch, 1, 1, generator=key) > 0.1)))
        sigma = draw_sigmas(schedule, settings.batch, key)
        noise = torch.randn(data[rows].shape, generator=key)
        return denoising(Denoiser(on_states(network), schedule, PREDICTIONS["eps"]), data[rows], noise, sigma, cond)

    state = State.begin(UNet(shape), settings)
    losses = [step.loss for step in train(state, loss, settings)]
    return state.ema, sum(losses[-200:]) / len(losses[-200:])


start, networks, errors = time.perf_counter(), {}, {}
for conditional, timed in ((True, True), (True, False), (False, True), (False, False)):
    networks[conditional, timed], errors[conditional, timed] = learn(clean, conditional, timed, (24, 48, 64))
size = sum(p.numel() for p in networks[True, True].parameters())
print(f"four networks of {size:,} numbers, {settings.steps} batches of {settings.batch} each: "
      f"{(time.perf_counter() - start) / 60:.1f} minutes")  # fmt: skip

# %% [markdown]
# ## From nothing but noise
#
# The naive way first, as in lesson 3: from pure noise, take away a part of the noise that the network says, and again,
# and again. Of how noisy the picture still is we keep count ourselves, and only to scale it: a network gets all its
# inputs equally large. This one is told nothing else.

# %%
from gradina.diffusion.noise import Noise

asked = torch.arange(10)
naive = Denoiser(on_states(networks[True, False]), schedule, PREDICTIONS["eps"])
x = schedule.sigmas[-1].float() * Noise(range(10), (1, 28, 28))()
steps, share, kept = full_or_short(40, 4), 0.2, []
with torch.no_grad():
    for i in range(steps):
        sigma = schedule.sigmas[-1] * (1 - share) ** i  # what is left, if the network is right
        guess = naive(x, sigma.clamp(min=schedule.sigmas[0]), Cond(one_hot(asked, True)))
        x = x - share * (x - guess)
        if i in (0, steps // 4, steps // 2, steps - 1):
            kept.append((i + 1, x / (1 + sigma**2).sqrt().float()))


show([pictures for _, pictures in kept], [f"after {i} steps" for i, _ in kept])

# %% [markdown]
# The lessons to come are about how to do this well: how large each part should be, and what to do with those before.
# Here we take a sampler that is known to be good, and compare the four networks with it. A recogniser that none of them
# knows says how many of the digits that we ask for can be read; networks that cannot be asked for a digit are judged by
# how sure the recogniser is of what it sees.

# %%
reading = train_recogniser(pictures, kinds, full_or_short(1000, 10))
unseen, unseen_kinds = digits("held out", full_or_short(10_000, 200))
print(f"the recogniser reads {100 * accuracy(reading, unseen, unseen_kinds):.1f} % of unseen digits")


wanted, steps = torch.arange(full_or_short(300, 10)) % 10, full_or_short(20, 4)
found, table = {}, []
for (conditional, timed), network in networks.items():
    denoiser = Denoiser(on_states(network), schedule, PREDICTIONS["eps"])
    shown = found[conditional, timed] = (
        sample(denoiser, wanted, steps, scale=2.0 if conditional else 0.0).clamp(-1, 1) / 2 + 0.5
    )
    sure = reading(shown).softmax(1).max(1).values.mean().item()
    read = f"{100 * accuracy(reading, shown, wanted):.1f} %" if conditional else "was not asked"
    table.append((("yes" if conditional else "no"), ("yes" if timed else "no"), errors[conditional, timed], read, sure))
print("told the digit  told t   error   read as asked   recogniser's certainty")
for conditional, timed, error, read, sure in table:
    print(f"{conditional:>14}  {timed:>6}  {error:.4f}  {read:>14}  {sure:>22.3f}")

# %%
labels = [f"{'digit' if conditional else '-'}, {'t' if timed else '-'}" for conditional, timed in found]
show([pictures[:10] for pictures in found.values()], labels)

# %% [markdown]
# So a glance is not enough, for networks that have learnt for so short a time: those that are not told t misjudge how
# much noise is left, and where they do, it stays. Those that are not told the digit draw one that nobody asked for, or
# something between two.
#
# ## The same with latents
#
# Nothing of this asks for pixels. The autoencoder of the shipped digits model makes 4x4x4 numbers of a picture (see
# lesson 5), and a U-Net of the same kind learns to say the noise in those.

# %%
import gradina

model = gradina.load("digits", dtype="fp32")
padded = torch.nn.functional.pad(clean, (2, 2, 2, 2), value=-1.0).expand(-1, 3, -1, -1)
with torch.no_grad():
    latents = torch.cat([model.vae.posterior(part).mean for part in padded.split(500)]) * model.vae.config.scale
start = time.perf_counter()
network, error = learn(latents, True, True, (64, 96))
taken = time.perf_counter() - start
with torch.no_grad():
    z = sample(Denoiser(on_states(network), schedule, PREDICTIONS["eps"]), wanted, steps, latents.shape[1:])
    shown = model.vae.decode(z)[:, :1, 2:30, 2:30]
read = accuracy(reading, shown.clamp(-1, 1) / 2 + 0.5, wanted)
print(f"latents: error {error:.4f}, {100 * read:.1f} % read as asked, {taken / 60:.1f} minutes")
show([shown[:10]], ["latents"])

# %% [markdown]
# The errors of the two cannot be compared: noise is easier to tell from pixels, of which neighbours are much alike,
# than from latents, in which all that can be left out has been. What can be compared is what one sees, and how long it
# took.
#
# ## What to try next
#
# * Draw with the guidance `scale` at 0.5, 1, 4 and 10. Which digits change most?
# * A network that is not told t has to find out for itself. Give it little noise and much, and plot how large the noise
#   is that it says.
# * Ask for half a 3 and half an 8: the row need not be a 1 among zeros.
