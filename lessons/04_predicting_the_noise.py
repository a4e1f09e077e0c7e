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
# # 4. Predicting the noise: a diffusion model
#
# Lesson 3 trained a function at great cost, only to follow its gradient. Yet we know where that gradient has to lead: a
# noisy digit is a digit plus noise, and we added the noise ourselves. So let the network predict the noise. This is
# *noise prediction*, or *eps*, after the letter that stands for noise. The loss is the mean squared error between the
# predicted and the true noise; adversarial training is not needed.

# %%
import time

import matplotlib.pyplot as plt
import torch
from handwriting import accuracy, digits, one_hot, sample, train_classifier
from lesson import PRECISION, full_or_short, show

from gradina.diffusion.schedule import sd_schedule

pictures, labels = digits("train", full_or_short(60_000, 500))
clean = 2 * pictures - 1  # black is -1, white is 1
schedule = sd_schedule()
key = torch.Generator().manual_seed(0)
sigmas = torch.tensor([0.0, 0.3, 1.0, 3.0, 10.0])
noise = torch.randn(5, 1, 28, 28, generator=key)
_, axes = plt.subplots(1, 5, figsize=(9, 2))
for picture, sigma, ax in zip(clean[7] + sigmas.view(-1, 1, 1, 1) * noise, sigmas, axes, strict=True):
    ax.imshow(picture[0].numpy(), cmap="gray")
    ax.set_title(f"sigma = {sigma:g}", fontsize=9)
    ax.axis("off")
plt.show()

# %% [markdown]
# How much noise? Very little up to very much, and everything between. The noise level is called *sigma*: a noisy
# picture is the clean one plus sigma times normal noise. The original papers choose a random *time step* t from 1 to
# 1000 and look sigma up on a curve, the *noise schedule*; one may as well speak of sigma itself.
#
# And the gradient? The best possible prediction of the noise, divided by -sigma, is the gradient of the logarithm of
# the probability density of pictures with that much noise. This gradient is called the *score*.

# %%
figure, axes = plt.subplots(figsize=(8, 2.6))
axes.semilogy(range(1, 1001), schedule.sigmas.numpy(), color="#c2571a")
axes.set(xlabel="t", ylabel="sigma", title=f"from {schedule.sigmas[0]:.3f} to {schedule.sigmas[-1]:.1f}")
plt.show()

# %% [markdown]
# ## The U-Net
#
# The network is a smaller version of Stable Diffusion's U-Net: it works at resolutions of 28x28, 14x14 and 7x7. Stable
# Diffusion's *condition* is text; here it is a *one-hot* vector of ten values, with a 1 for the digit in the picture.
# In one of ten training examples all values are 0, so that the network also learns to predict *unconditionally*, that
# is, what digits are in general.
#
# Does it need the condition? And does it have to be told t? The lecturer of the course that this follows doubts it: a
# glance at the picture shows how noisy it is. So we train four networks: with and without the digit, with and without
# t.

# %%
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import PREDICTIONS
from gradina.models.unet import UNet, UNetConfig
from gradina.training.data.dataset import generator
from gradina.training.loop import Settings, State, train
from gradina.training.losses import denoising, draw_sigmas

settings = Settings(steps=full_or_short(600, 3), batch=full_or_short(32, 8), lr=1e-3, ema=0.99, precision=PRECISION)


def train_unet(data, conditional, time, widths):
    torch.manual_seed(0)
    channels, side = data.shape[1], data.shape[2]
    config = UNetConfig(
        channels=channels, out_channels=channels, widths=widths, attention=(False,) + (True,) * (len(widths) - 1),
        heads=(4,) * len(widths), blocks=1, groups=8, context=10, time=time, size=side,
    )  # fmt: skip

    def loss(network, step):
        key = generator("lesson 4", step)  # the same pictures, noise and sigmas for each of the networks
        rows = torch.randint(len(data), (settings.batch,), generator=key)
        cond = Cond(one_hot(labels[rows], conditional & (torch.rand(settings.batch, 1, 1, generator=key) > 0.1)))
        sigma = draw_sigmas(schedule, settings.batch, key)
        noise = torch.randn(data[rows].shape, generator=key)
        return denoising(Denoiser(on_states(network), schedule, PREDICTIONS["eps"]), data[rows], noise, sigma, cond)

    state = State.begin(UNet(config), settings)
    history = [step.loss for step in train(state, loss, settings)]
    return state.ema, sum(history[-200:]) / len(history[-200:])  # ema: the moving average of the weights


start, networks, losses = time.perf_counter(), {}, {}
for conditional, time_given in ((True, True), (True, False), (False, True), (False, False)):
    networks[conditional, time_given], losses[conditional, time_given] = train_unet(
        clean, conditional, time_given, (24, 48, 64)
    )
parameters = sum(p.numel() for p in networks[True, True].parameters())
print(f"four networks of {parameters:,} parameters, {settings.steps} batches of {settings.batch} each: "
      f"{(time.perf_counter() - start) / 60:.1f} minutes")  # fmt: skip

# %% [markdown]
# ## Sampling: from noise to digits
#
# The naive way first, as in lesson 3: start from pure noise, subtract a part of the predicted noise, and repeat. We
# keep track of sigma ourselves, but only to scale the network's input, which should always have about the same
# variance. This network is not told t.

# %%
from gradina.diffusion.noise import Noise

classes = torch.arange(10)
naive = Denoiser(on_states(networks[True, False]), schedule, PREDICTIONS["eps"])
x = schedule.sigmas[-1].float() * Noise(range(10), (1, 28, 28))()
steps, fraction, kept = full_or_short(40, 4), 0.2, []
with torch.no_grad():
    for i in range(steps):
        sigma = schedule.sigmas[-1] * (1 - fraction) ** i  # the noise that is left, if the network is right
        denoised = naive(x, sigma.clamp(min=schedule.sigmas[0]), Cond(one_hot(classes, True)))
        x = x - fraction * (x - denoised)
        if i in (0, steps // 4, steps // 2, steps - 1):
            kept.append((i + 1, x / (1 + sigma**2).sqrt().float()))


show([samples for _, samples in kept], [f"after {i} steps" for i, _ in kept])

# %% [markdown]
# An algorithm that goes from noise to a picture is called a *sampler*. Later lessons are about good ones: how large
# each step should be, and how to use the steps before it. Here we take one that is known to be good (DPM-Solver++ 2M),
# and compare the four networks with it. A classifier that none of them knows measures the *accuracy*: how many pictures
# show the digit that was asked for. Unconditional networks are judged by its *confidence*, the mean probability of its
# answer.

# %%
classifier = train_classifier(pictures, labels, full_or_short(1000, 10))
test, test_labels = digits("held out", full_or_short(10_000, 200))
print(f"the classifier's accuracy on test digits: {100 * accuracy(classifier, test, test_labels):.1f} %")


targets, steps = torch.arange(full_or_short(300, 10)) % 10, full_or_short(20, 4)
samples, table = {}, []
for (conditional, time_given), network in networks.items():
    denoiser = Denoiser(on_states(network), schedule, PREDICTIONS["eps"])
    images = samples[conditional, time_given] = (
        sample(denoiser, targets, steps, scale=2.0 if conditional else 0.0).clamp(-1, 1) / 2 + 0.5
    )
    confidence = classifier(images).softmax(1).max(1).values.mean().item()
    correct = f"{100 * accuracy(classifier, images, targets):.1f} %" if conditional else "-"
    answers = ("yes" if conditional else "no", "yes" if time_given else "no")
    table.append((*answers, losses[conditional, time_given], correct, confidence))
print("told the digit  told t    loss  accuracy  confidence")
for conditional, time_given, loss, correct, confidence in table:
    print(f"{conditional:>14}  {time_given:>6}  {loss:.4f}  {correct:>8}  {confidence:>10.3f}")

# %%
row_labels = [f"{'digit' if conditional else '-'}, {'t' if time_given else '-'}" for conditional, time_given in samples]
show([images[:10] for images in samples.values()], row_labels)

# %% [markdown]
# So a glance is not enough, for networks that have been trained for so short a time: those that are not told t misjudge
# sigma, and where they do, noise remains. Those that are not told the digit make a random one, or something between
# two.
#
# ## The same with latents
#
# Nothing here depends on pixels. The *autoencoder* of the shipped digits model turns a picture into 4x4x4 values, its
# *latents* (lesson 5), and a U-Net of the same kind learns to predict the noise in those. This is *latent diffusion*.

# %%
import gradina

model = gradina.load("digits", dtype="fp32")
padded = torch.nn.functional.pad(clean, (2, 2, 2, 2), value=-1.0).expand(-1, 3, -1, -1)
with torch.no_grad():
    latents = torch.cat([model.vae.posterior(batch).mean for batch in padded.split(500)]) * model.vae.config.scale
start = time.perf_counter()
network, loss = train_unet(latents, True, True, (64, 96))
minutes = (time.perf_counter() - start) / 60
with torch.no_grad():
    z = sample(Denoiser(on_states(network), schedule, PREDICTIONS["eps"]), targets, steps, latents.shape[1:])
    images = model.vae.decode(z)[:, :1, 2:30, 2:30]
correct = accuracy(classifier, images.clamp(-1, 1) / 2 + 0.5, targets)
print(f"latents: loss {loss:.4f}, accuracy {100 * correct:.1f} %, trained in {minutes:.1f} minutes")
show([images[:10]], ["latents"])

# %% [markdown]
# The two losses cannot be compared: noise is easier to predict in pixels, whose neighbours are strongly correlated,
# than in latents, from which that redundancy has been removed. What can be compared is the samples and the training
# time.
#
# ## What to try next
#
# * Sample with a guidance `scale` of 0.5, 1, 4 and 10. Which digits change most?
# * A network that is not told t has to estimate sigma itself. Give it pictures with little noise and with much, and
#   plot the standard deviation of the noise that it predicts.
# * Ask for half a 3 and half an 8: the condition need not be one-hot.
