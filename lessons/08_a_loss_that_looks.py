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
# # 8. A loss that looks: perceptual loss
#
# The mean squared error counts pixels. It does not care whether they are wrong all over the picture, a little each, or
# whether a stroke is missing. We do. A network that has learnt to read digits looks at pictures more as we do: in its
# first layer it sees edges, then corners and bends, then parts of digits. So let it compare the picture that was meant
# with the one that the noise, as our network says it, would leave; and let the loss be how different the two look to
# it.
#
# Is that a better loss? Three networks, the same but for what they minimise: the squared error of the noise, as in
# lesson 4; how different the pictures look; and both.

# %%
import time

import torch
from handwriting import accuracy, digits, one_hot, sample, train_recogniser
from lesson import full_or_short, show

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import sd_schedule
from gradina.models.unet import UNet, UNetConfig
from gradina.training.data.dataset import generator
from gradina.training.loop import Settings, State, train
from gradina.training.losses import denoising, draw_sigmas, min_snr

pictures, kinds = digits("train", full_or_short(60_000, 500))
unseen, unseen_kinds = digits("held out", full_or_short(10_000, 200))
looking = train_recogniser(pictures, kinds, full_or_short(1000, 10))
print(f"the network that looks reads {100 * accuracy(looking, unseen, unseen_kinds):.1f} % of unseen digits")

# %% [markdown]
# ## What it sees
#
# A picture, the same a pixel further to the right, and the same with a stroke rubbed out. Which of the two is nearer to
# the first? Count pixels, then look through the layers. (Each is measured in units of how strong it is, so that all
# count alike.)

# %%


def feature_distances(images, others):
    """How different pictures (n, 1, 28, 28) in -1..1 look, layer by layer: (layers, n)."""
    return torch.stack(
        [
            ((a - b) ** 2).flatten(1).mean(1) / (b**2).mean()
            for a, b in zip(looking.maps(images / 2 + 0.5), looking.maps(others / 2 + 0.5), strict=True)
        ]
    )


picture = 2 * unseen[:1] - 1
moved = picture.roll(1, dims=3)
rubbed = picture.clone()
rubbed[:, :, 4:11, 12:22] = -1
print("                squared error   " + "   ".join(f"layer {i + 1}" for i in range(3)))
for name, other in (("moved", moved), ("rubbed out", rubbed)):
    layers = feature_distances(other, picture)[:, 0].tolist()
    print(f"{name:>12}: {((other - picture) ** 2).mean():16.3f}   " + "   ".join(f"{value:7.3f}" for value in layers))
show([torch.cat([picture, moved, rubbed]) / 2 + 0.5], [""])

# %% [markdown]
# To the pixels, the digit that has only moved is further off than the one that lacks a stroke. To the later layers it
# is the other way round, as it is to us.
#
# ## Three losses

# %%
clean = 2 * pictures - 1
schedule = sd_schedule()
settings = Settings(steps=full_or_short(600, 3), batch=full_or_short(24, 8), lr=1e-3, ema=0.99, precision="bfloat16")
SHAPE = UNetConfig(
    channels=1, out_channels=1, widths=(24, 48, 64), attention=(False, True, True), heads=(4, 4, 4), blocks=1,
    groups=8, context=10, size=28,
)  # fmt: skip


def learn(pixel_weight, feature_weight):
    torch.manual_seed(0)

    def loss(network, k):
        key = generator("lesson 8", k)  # the same pictures, noise and amounts for each of the networks
        rows = torch.randint(len(clean), (settings.batch,), generator=key)
        cond = Cond(one_hot(kinds[rows], torch.rand(settings.batch, 1, 1, generator=key) > 0.1))
        sigma = draw_sigmas(schedule, settings.batch, key)
        noise = torch.randn(clean[rows].shape, generator=key)
        denoiser = Denoiser(on_states(network), schedule, PREDICTIONS["eps"])
        total = 0
        if pixel_weight:
            total = total + pixel_weight * denoising(denoiser, clean[rows], noise, sigma, cond)
        if feature_weight:  # of little use where hardly anything can be seen: weighed by the signal there is
            guess = denoiser(denoiser.noised(clean[rows], noise, sigma), sigma, cond)
            total = total + feature_weight * min_snr(sigma, 5.0, "x0") * feature_distances(guess, clean[rows]).mean(0)
        return total

    state, start = State.begin(UNet(SHAPE), settings), time.perf_counter()
    for _ in train(state, loss, settings):
        pass
    return state.ema, time.perf_counter() - start


losses = {"noise": (1.0, 0.0), "both": (1.0, 0.1), "looks": (0.0, 0.1)}
networks, seconds = {}, {}
for name, weights in losses.items():
    networks[name], seconds[name] = learn(*weights)

# %% [markdown]
# ## Who judges?
#
# Not the network that looked: whoever learns to please it may learn its blind spots. A second recogniser, begun from
# other numbers, says how many of the digits that we ask for can be read. And the features that it sees in a thousand
# drawn digits, and in a thousand real ones, are two clouds of points: how far apart their middles and their spreads are
# is Fréchet's distance, with which pictures are judged in this field (there it is called FID). Real digits against
# other real ones say what the best is that can be had.

# %%
judging = train_recogniser(pictures, kinds, full_or_short(1000, 10), seed=1)
wanted, steps = torch.arange(full_or_short(1000, 20)) % 10, full_or_short(20, 4)


@torch.no_grad()
def feature_statistics(images):
    features = torch.cat([judging.maps(part)[-1].mean(dim=(2, 3)) for part in images.split(500)]).double()
    return features.mean(0), features.T.cov()


def distance(one, other):
    """Fréchet's distance between two normal distributions. Source: Heusel et al., 1706.08500, equation 6."""
    (a, of_a), (b, of_b) = one, other
    root = torch.linalg.eigvals(of_a @ of_b).sqrt().real.sum()
    return ((a - b) ** 2).sum().item() + (of_a.trace() + of_b.trace() - 2 * root).item()


real, others = feature_statistics(unseen[: len(wanted)]), feature_statistics(unseen[-len(wanted) :])
table = [("real digits", accuracy(judging, unseen, unseen_kinds), distance(others, real), torch.nan, 0.0)]
shown = {}
sigma = draw_sigmas(schedule, full_or_short(1000, 50), torch.Generator().manual_seed(1))
held = 2 * unseen[: len(sigma)] - 1
noise = torch.randn(held.shape, generator=torch.Generator().manual_seed(2))
for name, network in networks.items():
    denoiser = Denoiser(on_states(network), schedule, PREDICTIONS["eps"])
    with torch.no_grad():
        error = denoising(denoiser, held, noise, sigma, Cond(one_hot(unseen_kinds[: len(sigma)]))).mean().item()
    shown[name] = sample(denoiser, wanted, steps).clamp(-1, 1) / 2 + 0.5
    table.append(
        (
            name,
            accuracy(judging, shown[name], wanted),
            distance(feature_statistics(shown[name]), real),
            error,
            seconds[name],
        )
    )
print("what was minimised   read as asked   Fréchet distance   error of the noise   seconds to learn")
for name, read, far, error, took in table:
    print(f"{name:>18} {100 * read:13.1f} % {far:18.3f} {error:20.4f} {took:18.0f}")

# %%
show([pictures[:10] for pictures in shown.values()], list(shown))
# %% [markdown]
# The three columns of the table are three opinions, and they differ. The error of the noise is what the first network
# was taught to make small. Whether digits can be read, and whether they look as a cloud of real ones does, is what one
# wants; a loss is good if it leads there.
#
# The loss that looks leads to digits that are read most often, also by a judge that it has never met: its strokes hang
# together. But it is careless of what the looking network does not see, and the grey specks on black are the price: its
# cloud is the furthest from that of real digits, and its noise the least exact. Both losses together are as exact as
# the squared error alone, are read more often, and take twice the time to learn, in which the squared error alone could
# have taken twice the steps. Perceptual losses are at home where sharp edges count more than exact values, in the
# decoders of autoencoders; as the only loss of a network that says noise, they are not enough.
#
# ## What to try next
#
# * Leave out the first layer of what is compared, or the last. Which one matters?
# * Weigh looks by ten times as much, or by a tenth, in `losses`.
# * The features of any network will do: let the decoder of lesson 5's autoencoder look, at what it makes of latents.
