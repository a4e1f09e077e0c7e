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
# Most of a picture is no surprise: next to a red place there is, nearly always, a red place. A network that makes a
# picture small, and another that makes it large again, both taught by one error (what comes back should be what went
# in), have to find out what can be left out. Cut the two apart, send the numbers between them, and you have a
# compression program. Stable Diffusion draws in those numbers, the latents: there are far fewer of them.
#
# The shipped model's autoencoder has learnt from icons. Here are some that no part of it has ever seen.

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
    back = model.vae.decode(latents).clamp(-1, 1)


def show_all(rows, labels):
    show([map(to_image, row) for row in rows], labels)


kept = min(8, len(pictures))
show_all([pictures[:kept], back[:kept]], ["picture", "and back"])
print(", ".join(names[:kept]))
before, after = pictures[0].numel(), latents[0].numel()
print(f"numbers: {before:,} become {after:,}, {before / after:.0f} times fewer")

# %% [markdown]
# ## What the numbers look like
#
# Four maps, an eighth as wide and high as the picture. One can see the thing in them: neighbours stay neighbours.

# %%
_, places = plt.subplots(1, 5, figsize=(9, 2.1))
places[0].imshow((pictures[0] / 2 + 0.5).permute(1, 2, 0).numpy())
for k, place in enumerate(places[1:]):
    place.imshow(latents[0, k].numpy(), cmap="gray")
    place.set_title(f"latent {k + 1}", fontsize=9)
for place in places:
    place.axis("off")
plt.show()

# %% [markdown]
# ## How they get small
#
# By convolutions that move two places at a time: each halves the width and the height. Three of them make an eighth.
# The way up does the same backwards. This is what each part makes of a picture:

# %%
shapes = []
hooks = [
    part.register_forward_hook(lambda _, given, made, name=name: shapes.append((name, given[0].shape, made.shape)))
    for name, part in (*model.vae.encoder.named_modules(), *model.vae.decoder.named_modules())
    if type(part).__name__ in ("Downsample", "Upsample")
]
with torch.no_grad():
    model.vae.decode(model.vae.encode(pictures[:1]))
for hook in hooks:
    hook.remove()
for name, given, made in shapes:
    print(f"{name:>12}: {' x '.join(map(str, given[1:])):>15}  ->  {' x '.join(map(str, made[1:]))}")

# %% [markdown]
# ## Beside JPEG and PNG
#
# A number is not a byte. The latents come as numbers with a fraction; how exactly do they have to be sent? Let us round
# them to so many levels, pack what is left with zlib, and see what comes back. How near that is to the picture is
# counted in decibels (PSNR): 20 is poor, 30 is good, 40 can hardly be told from the picture.
#
# JPEG forgets, too, and its quality can be chosen. PNG forgets nothing; to make it as small, the picture itself has to
# be made smaller before, and large again after.

# %%
import io
import zlib

import numpy as np
from matplotlib.ticker import StrMethodFormatter
from PIL import Image


def mean_psnr(some, others):
    return sum(psnr(a, b, 2.0) for a, b in zip(some, others, strict=True)) / len(some)


def packed_latents(bits):
    spread = latents.abs().amax(dim=(0, 2, 3), keepdim=True)
    levels = 2 ** (bits - 1) - 1
    rounded = (latents / spread * levels).round()
    with torch.no_grad():
        restored = model.vae.decode(rounded * spread / levels).clamp(-1, 1)
    return [len(zlib.compress(z.to(torch.int8).numpy().tobytes(), 9)) for z in rounded], restored


def packed_file(picture, **how):
    file = io.BytesIO()
    picture.save(file, optimize=True, **how)
    return len(file.getvalue()), file


def packed_jpeg(quality):
    sizes, restored = [], []
    for picture in pictures:
        size, file = packed_file(to_image(picture), format="JPEG", quality=quality)
        sizes.append(size)
        restored.append(to_pixels(Image.open(file)))
    return sizes, torch.stack(restored)


def packed_png(side):
    sizes, restored = [], []
    for picture in pictures:
        small = to_image(picture).resize((side, side), Image.Resampling.LANCZOS)
        sizes.append(packed_file(small, format="PNG")[0])
        restored.append(to_pixels(small.resize((128, 128), Image.Resampling.BICUBIC)))
    return sizes, torch.stack(restored)


ways = {
    "latents": [(f"{bits} bits", packed_latents(bits)) for bits in (8, 7, 6, 5, 4, 3)],
    "JPEG": [(f"quality {quality}", packed_jpeg(quality)) for quality in (1, 5, 10, 20, 40, 60, 80, 95)],
    "PNG, made smaller": [(f"{side} x {side}", packed_png(side)) for side in (12, 16, 24, 32, 48, 64, 96)],
}
points = {
    way: [(label, sum(sizes) / len(sizes), mean_psnr(pictures, restored)) for label, (sizes, restored) in tried]
    for way, tried in ways.items()
}
lossless = sum(packed_file(to_image(p), format="PNG")[0] for p in pictures) / len(pictures)
print(f"as they are: {pictures[0].numel():,} bytes; PNG, of which all comes back: {lossless:,.0f} bytes")
for way, rows in points.items():
    for label, size, decibels in rows:
        print(f"{way:>18}, {label:<11} {size:6,.0f} bytes  {decibels:5.1f} dB")

# %%
figure, axes = plt.subplots(figsize=(8, 3.8))
for (way, rows), colour in zip(points.items(), ("#c2571a", "#2b5c8a", "#777777"), strict=True):
    axes.plot([size for _, size, _ in rows], [decibels for *_, decibels in rows], "o-", label=way, color=colour)
axes.axvline(lossless, color="#777777", linestyle=":", label="PNG, whole")
axes.set(
    xscale="log", xlabel="bytes for a picture of 128 x 128", ylabel="PSNR, dB", xticks=(200, 500, 1000, 2000, 5000)
)
axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
axes.minorticks_off()
axes.legend()
plt.show()

# %% [markdown]
# And to look at: each way at about the size that the latents have at six bits.

# %%
wanted = points["latents"][2][1]
rows, labels = [pictures[:kept]], ["picture"]
for way, tried in ways.items():
    nearest = min(range(len(tried)), key=lambda i: abs(points[way][i][1] - wanted))
    rows.append(tried[nearest][1][1][:kept])
    labels.append(f"{way.partition(',')[0]}\n{points[way][nearest][1]:,.0f} bytes\n{points[way][nearest][2]:.1f} dB")
show_all(rows, labels)

# %% [markdown]
# One thing has been left out of this account: whoever unpacks a JPEG needs a program of some hundred kilobytes, and has
# it already. Whoever unpacks latents needs the decoder.

# %%
decoder = sum(p.numel() for p in model.vae.decoder.parameters())
reached = points["latents"][2][2]
sizes, quality = zip(*[(size, decibels) for _, size, decibels in points["JPEG"]], strict=True)
saved = float(np.interp(reached, quality, sizes)) - wanted
print(f"the decoder: {decoder:,} numbers, {2 * decoder / 1e6:.1f} MB in half precision")
print(f"a JPEG of {reached:.1f} dB takes {saved:,.0f} bytes more: worth it from {2 * decoder / saved:,.0f} pictures on")

# %% [markdown]
# ## Is anything lost?
#
# Yes. With 48 times fewer numbers it has to be. The question is what. Here is what did not come back, three times as
# strong: thin lines, edges, small ornaments; of even parts, nothing.

# %%
lost = 3 * (pictures - back)
show_all([pictures[:kept], lost[:kept]], ["picture", "lost, x 3"])
decibels = torch.tensor([psnr(a, b, 2.0) for a, b in zip(pictures, back, strict=True)])
worst, best = int(decibels.argmin()), int(decibels.argmax())
print(f"best: {names[best]}, {decibels[best]:.1f} dB; worst: {names[worst]}, {decibels[worst]:.1f} dB")
print(f"all: {decibels.mean():.1f} dB")

# %% [markdown]
# And through it again, and again. What has come back once does not come back unchanged the second time: a little more
# is lost each time, as with JPEG.

# %%
again, course = pictures[:kept], []
with torch.no_grad():
    for _ in range(full_or_short(10, 3)):
        again = model.vae.decode(model.vae.encode(again)).clamp(-1, 1)
        course.append(mean_psnr(pictures[:kept], again))
print("dB after each time: " + ", ".join(f"{each:.1f}" for each in course))

# %% [markdown]
# What is kept so well, and in so little, is what icons are like: the two networks know that. Of what they do not know
# they lose more. Noise, in which no place says anything about the next, is what cannot be made smaller at all.

# %%
from handwriting import digits

key = torch.Generator().manual_seed(0)
shuffled = torch.randperm(128 * 128, generator=key)
strange = {
    "icons, upside down": pictures.flip(2),
    "icons as negatives": -pictures,
    "handwritten digits": torch.nn.functional.interpolate(2 * digits("held out", 8)[0] - 1, 128).expand(-1, 3, -1, -1),
    "icons, places shuffled": pictures.flatten(2)[:, :, shuffled].view_as(pictures),
    "noise": torch.rand(8, 3, 128, 128, generator=key) * 2 - 1,
}
for name, some in strange.items():
    with torch.no_grad():
        returned = model.vae.decode(model.vae.encode(some)).clamp(-1, 1)
    print(f"{name:>22}: {mean_psnr(some, returned):5.1f} dB")

# %% [markdown]
# ## Why a little noise in the middle: the V in VAE
#
# The encoder does not say one place for a picture, but a middle and a width, and while it learns the decoder is given a
# point near the middle. So points between those of two pictures mean something, too, and a U-Net that says latents only
# nearly right still gets a picture. Half-way between two pictures, in pixels and in latents:

# %%
a, b = 0, min(3, kept - 1)
shares = torch.linspace(0, 1, 7).view(-1, 1, 1, 1)
with torch.no_grad():
    between = model.vae.decode(torch.lerp(latents[a : a + 1], latents[b : b + 1], shares))
    spread = (model.vae.posterior(pictures[:kept]).logvar / 2).exp().mean()
show_all([torch.lerp(pictures[a : a + 1], pictures[b : b + 1], shares), between], ["pixels", "latents"])
print(f"the width of a point, where the latents of all pictures have 1: {spread * model.vae.config.scale:.3f}")

# %% [markdown]
# The two rows are much alike, and that is no failure: latents that are as smooth as pictures are easy to draw.
# Half of one thing laid over half of another is not a picture of anything, in latents as little as in pixels. Latents
# make pictures smaller; they do not know what pictures show. That is for words to say, in the next lesson.
#
# ## What to try next
#
# * `gradina encode PICTURE -o FILE.latents` and `gradina decode FILE.latents -o PICTURE` are this program. Try a
#   photograph, and look.
# * Add noise to the latents before they are decoded: how much can there be before you see it?
# * Take the mean of one latent map away, or make it twice as strong. What does each of the four stand for?
