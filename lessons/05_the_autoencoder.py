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
# # 5. The autoencoder: a compression program
#
# Pictures are redundant: next to a red pixel there is, nearly always, a red pixel. An *autoencoder* is two networks:
# the *encoder* makes a picture small, and the *decoder* makes it large again. They are trained together, with a loss
# that compares the *reconstruction* to the picture, and so have to find out what can be left out. Cut the two apart,
# send the values between them, and you have a compression program. Stable Diffusion generates those values, the
# *latents*: there are far fewer of them.
#
# The shipped model's autoencoder was trained on icons. Here are *held-out* ones, which no part of it has ever seen.

# %%
import matplotlib.pyplot as plt
import torch
from icons import held_out_icons
from lesson import full_or_short, show

import gradina
from gradina.images.tensor import to_image, to_pixels
from gradina.tasks.metrics import psnr

model = gradina.load("emoji", dtype="fp32", plain=True)
pictures, names = held_out_icons(full_or_short(40, 6))
with torch.no_grad():
    latents = model.vae.encode(pictures)
    reconstructions = model.vae.decode(latents).clamp(-1, 1)


def show_all(rows, labels):
    show([map(to_image, row) for row in rows], labels)


columns = min(8, len(pictures))
show_all([pictures[:columns], reconstructions[:columns]], ["picture", "reconstruction"])
print(", ".join(names[:columns]))
pixels, values = pictures[0].numel(), latents[0].numel()
print(f"values: {pixels:,} in pixels, {values:,} in latents, {pixels / values:.0f} times fewer")

# %% [markdown]
# ## What latents look like
#
# They have four channels, of an eighth of the picture's width and height. You can see the picture in them: neighbours
# stay neighbours.

# %%
_, axes = plt.subplots(1, 5, figsize=(9, 2.1))
axes[0].imshow((pictures[0] / 2 + 0.5).permute(1, 2, 0).numpy())
for k, ax in enumerate(axes[1:]):
    ax.imshow(latents[0, k].numpy(), cmap="gray")
    ax.set_title(f"latent channel {k + 1}", fontsize=9)
for ax in axes:
    ax.axis("off")
plt.show()

# %% [markdown]
# ## Downsampling and upsampling
#
# The encoder has *convolutions* with a *stride* of two: they move by two pixels at a time, and so halve the width and
# the height. Three of them make an eighth. The decoder does the reverse, in three steps of *upsampling*. These are the
# shapes before and after each:

# %%
shapes = []
hooks = [
    layer.register_forward_hook(lambda _, args, out, name=name: shapes.append((name, args[0].shape, out.shape)))
    for name, layer in (*model.vae.encoder.named_modules(), *model.vae.decoder.named_modules())
    if type(layer).__name__ in ("Downsample", "Upsample")
]
with torch.no_grad():
    model.vae.decode(model.vae.encode(pictures[:1]))
for hook in hooks:
    hook.remove()
for name, before, after in shapes:
    print(f"{name:>12}: {' x '.join(map(str, before[1:])):>15}  ->  {' x '.join(map(str, after[1:]))}")

# %% [markdown]
# ## Compared to JPEG and PNG
#
# Fewer values are not yet fewer bytes. Latents are floats; how precisely do they have to be stored? Let us *quantise*
# them, which rounds them to a few levels, compress the result with zlib, and decode it. How near that is to the picture
# is measured by the *peak signal-to-noise ratio* (PSNR), in decibels: 20 is poor, 30 is good, 40 can hardly be told
# from the picture.
#
# JPEG is *lossy* too, and its quality can be chosen. PNG is *lossless*; to make it as small, the picture itself has to
# be downscaled before, and upscaled after.

# %%
import io
import zlib

import numpy as np
from matplotlib.ticker import StrMethodFormatter
from PIL import Image


def mean_psnr(originals, others):
    return sum(psnr(a, b, 2.0) for a, b in zip(originals, others, strict=True)) / len(originals)


def compress_latents(bits):
    peak = latents.abs().amax(dim=(0, 2, 3), keepdim=True)
    levels = 2 ** (bits - 1) - 1
    quantised = (latents / peak * levels).round()
    with torch.no_grad():
        decoded = model.vae.decode(quantised * peak / levels).clamp(-1, 1)
    return [len(zlib.compress(z.to(torch.int8).numpy().tobytes(), 9)) for z in quantised], decoded


def save(picture, **options):
    file = io.BytesIO()
    picture.save(file, optimize=True, **options)
    return len(file.getvalue()), file


def compress_jpeg(quality):
    sizes, decoded = [], []
    for picture in pictures:
        size, file = save(to_image(picture), format="JPEG", quality=quality)
        sizes.append(size)
        decoded.append(to_pixels(Image.open(file)))
    return sizes, torch.stack(decoded)


def compress_png(side):
    sizes, decoded = [], []
    for picture in pictures:
        small = to_image(picture).resize((side, side), Image.Resampling.LANCZOS)
        sizes.append(save(small, format="PNG")[0])
        decoded.append(to_pixels(small.resize((128, 128), Image.Resampling.BICUBIC)))
    return sizes, torch.stack(decoded)


methods = {
    "latents": [(f"{bits} bits", compress_latents(bits)) for bits in (8, 7, 6, 5, 4, 3)],
    "JPEG": [(f"quality {quality}", compress_jpeg(quality)) for quality in (1, 5, 10, 20, 40, 60, 80, 95)],
    "PNG, downscaled": [(f"{side} x {side}", compress_png(side)) for side in (12, 16, 24, 32, 48, 64, 96)],
}
points = {
    method: [(label, sum(sizes) / len(sizes), mean_psnr(pictures, decoded)) for label, (sizes, decoded) in variants]
    for method, variants in methods.items()
}
lossless = sum(save(to_image(p), format="PNG")[0] for p in pictures) / len(pictures)
print(f"uncompressed: {pictures[0].numel():,} bytes; lossless PNG: {lossless:,.0f} bytes")
for method, rows in points.items():
    for label, size, decibels in rows:
        print(f"{method:>18}, {label:<11} {size:6,.0f} bytes  {decibels:5.1f} dB")

# %%
figure, axes = plt.subplots(figsize=(8, 3.8))
for (method, rows), colour in zip(points.items(), ("#c2571a", "#2b5c8a", "#777777"), strict=True):
    axes.plot([size for _, size, _ in rows], [decibels for *_, decibels in rows], "o-", label=method, color=colour)
axes.axvline(lossless, color="#777777", linestyle=":", label="PNG, lossless")
axes.set(
    xscale="log", xlabel="bytes for a picture of 128 x 128", ylabel="PSNR, dB", xticks=(200, 500, 1000, 2000, 5000)
)
axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
axes.minorticks_off()
axes.legend()
plt.show()

# %% [markdown]
# And to look at: each method at about the size that the latents have at six bits.

# %%
target = points["latents"][2][1]
rows, labels = [pictures[:columns]], ["picture"]
for method, variants in methods.items():
    i = min(range(len(variants)), key=lambda i: abs(points[method][i][1] - target))
    rows.append(variants[i][1][1][:columns])
    labels.append(f"{method.partition(',')[0]}\n{points[method][i][1]:,.0f} bytes\n{points[method][i][2]:.1f} dB")
show_all(rows, labels)

# %% [markdown]
# One cost has been left out: a JPEG needs a program of some hundred kilobytes to open it, but everybody has that
# already. Latents need the decoder.

# %%
parameters = sum(p.numel() for p in model.vae.decoder.parameters())
reached = points["latents"][2][2]
sizes, quality = zip(*[(size, decibels) for _, size, decibels in points["JPEG"]], strict=True)
saved = float(np.interp(reached, quality, sizes)) - target
print(f"the decoder: {parameters:,} parameters, {2 * parameters / 1e6:.1f} MB in fp16")
pays_off = 2 * parameters / saved
print(f"a JPEG of {reached:.1f} dB takes {saved:,.0f} bytes more: worth it from {pays_off:,.0f} pictures on")

# %% [markdown]
# ## What is lost?
#
# With 48 times fewer values, something has to be. Here is the *residual*, the picture minus its reconstruction, times
# three: thin lines, edges, small ornaments. In flat areas there is none.

# %%
residuals = 3 * (pictures - reconstructions)
show_all([pictures[:columns], residuals[:columns]], ["picture", "residual x 3"])
decibels = torch.tensor([psnr(a, b, 2.0) for a, b in zip(pictures, reconstructions, strict=True)])
worst, best = int(decibels.argmin()), int(decibels.argmax())
print(f"best: {names[best]}, {decibels[best]:.1f} dB; worst: {names[worst]}, {decibels[worst]:.1f} dB")
print(f"mean: {decibels.mean():.1f} dB")

# %% [markdown]
# Now encode and decode the reconstruction, again and again. It does not come back unchanged: a little more is lost each
# time, as with JPEG.

# %%
repeated, history = pictures[:columns], []
with torch.no_grad():
    for _ in range(full_or_short(10, 3)):
        repeated = model.vae.decode(model.vae.encode(repeated)).clamp(-1, 1)
        history.append(mean_psnr(pictures[:columns], repeated))
print("PSNR after each time, dB: " + ", ".join(f"{each:.1f}" for each in history))

# %% [markdown]
# Icons can be made so small because the two networks have learnt what icons are like. Pictures that differ from the
# training data lose more. Noise, in which no pixel says anything about its neighbours, cannot be compressed at all.

# %%
from handwriting import digits

key = torch.Generator().manual_seed(0)
shuffled = torch.randperm(128 * 128, generator=key)
unfamiliar = {
    "icons, upside down": pictures.flip(2),
    "icons as negatives": -pictures,
    "handwritten digits": torch.nn.functional.interpolate(2 * digits("held out", 8)[0] - 1, 128).expand(-1, 3, -1, -1),
    "icons, pixels shuffled": pictures.flatten(2)[:, :, shuffled].view_as(pictures),
    "noise": torch.rand(8, 3, 128, 128, generator=key) * 2 - 1,
}
for name, originals in unfamiliar.items():
    with torch.no_grad():
        decoded = model.vae.decode(model.vae.encode(originals)).clamp(-1, 1)
    print(f"{name:>22}: {mean_psnr(originals, decoded):5.1f} dB")

# %% [markdown]
# ## Why the latents are random in training: the V in VAE
#
# This is a *variational* autoencoder. Its encoder does not return one point for a picture but a normal distribution,
# with a mean and a variance, and in training the decoder gets a random sample of it. (A second part of the loss, the
# *KL divergence*, with a small weight, keeps it from getting too far from the standard normal distribution.) So points
# between those of two pictures mean something, too, and a U-Net whose latents are only nearly right still makes a
# picture. Here we *interpolate* between two pictures, in pixels and in latents:

# %%
a, b = 0, min(3, columns - 1)
weights = torch.linspace(0, 1, 7).view(-1, 1, 1, 1)
with torch.no_grad():
    interpolated = model.vae.decode(torch.lerp(latents[a : a + 1], latents[b : b + 1], weights))
    std = (model.vae.posterior(pictures[:columns]).logvar / 2).exp().mean()
show_all([torch.lerp(pictures[a : a + 1], pictures[b : b + 1], weights), interpolated], ["pixels", "latents"])
print(f"standard deviation of one picture's distribution: {std * model.vae.config.scale:.3f}; of all latents: about 1")

# %% [markdown]
# The two rows are much alike, and that is no failure: latents that are as smooth as pictures are easy to generate. Half
# of one thing laid over half of another is not a picture of anything, in latents as little as in pixels. Latents make
# pictures smaller; they do not know what pictures show. That is for text, in the next lesson.
#
# ## What to try next
#
# * `gradina encode PICTURE -o FILE.latents` and `gradina decode FILE.latents -o PICTURE` are this program. Try a
#   photograph, and look.
# * Add noise to the latents before they are decoded: how much can there be before you see it?
# * Subtract the mean of one latent channel from it, or double the channel. What does each of the four stand for?
