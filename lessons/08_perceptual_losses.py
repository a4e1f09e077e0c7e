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
# # 8. Perceptual losses
#
# The mean squared error (MSE) compares pixel by pixel. It does not care whether all pixels are slightly wrong or a
# stroke is missing. We do. A classifier of digits sees pictures more as we do: the features of its first layer are
# edges, those of the next ones corners and bends, then parts of digits. A perceptual loss compares pictures by such
# features instead of pixels; the best-known is LPIPS (Zhang et al. 1801.03924). Here it compares the clean picture with
# the denoised one, the estimate that follows from the predicted noise.
#
# Is that a better loss? We train three networks that differ only in the loss: the MSE of the noise, as in lesson 4; a
# perceptual loss; and their weighted sum.

# %%
import time

import torch
from handwriting import accuracy, digits, one_hot, sample, train_classifier
from lesson import PRECISION, full_or_short, show

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import PREDICTIONS
from gradina.diffusion.schedule import sd_schedule
from gradina.models.unet import UNet, UNetConfig
from gradina.training.data.dataset import generator
from gradina.training.loop import Settings, State, train
from gradina.training.losses import denoising, draw_sigmas, min_snr

pictures, labels = digits("train", full_or_short(60_000, 500))
test_pictures, test_labels = digits("held out", full_or_short(10_000, 200))
loss_classifier = train_classifier(pictures, labels, full_or_short(1000, 10))
reached = accuracy(loss_classifier, test_pictures, test_labels)
print(f"accuracy of the classifier in the loss: {100 * reached:.1f} % of test digits")

# %% [markdown]
# ## Distances between features
#
# A picture, the same moved to the right by a pixel, and the same with part of a stroke erased. Which of the two is
# nearer to the first? We compare the pixels, then the features of each layer. (Each layer's squared distance is divided
# by the layer's mean square, so that all layers count alike.)

# %%


def feature_distances(images, targets):
    """Squared distance of the features of pictures (n, 1, 28, 28) in -1..1, for each layer: (layers, n)."""
    extract = loss_classifier.maps
    return torch.stack(
        [
            ((a - b) ** 2).flatten(1).mean(1) / (b**2).mean()
            for a, b in zip(extract(images / 2 + 0.5), extract(targets / 2 + 0.5), strict=True)
        ]
    )


picture = 2 * test_pictures[:1] - 1
moved = picture.roll(1, dims=3)
erased = picture.clone()
erased[:, :, 4:11, 12:22] = -1
print("                  pixels, MSE   " + "   ".join(f"layer {i + 1}" for i in range(3)))
for name, changed in (("moved", moved), ("erased", erased)):
    layers = feature_distances(changed, picture)[:, 0].tolist()
    print(f"{name:>12}: {((changed - picture) ** 2).mean():16.3f}   " + "   ".join(f"{value:7.3f}" for value in layers))
show([torch.cat([picture, moved, erased]) / 2 + 0.5], [""])

# %% [markdown]
# By pixels, the moved digit is further from the original than the one that lacks part of a stroke. By the features of
# the later layers it is the other way round, as it is to us.
#
# ## Training with three losses

# %%
clean = 2 * pictures - 1
schedule = sd_schedule()
settings = Settings(steps=full_or_short(600, 3), batch=full_or_short(24, 8), lr=1e-3, ema=0.99, precision=PRECISION)
SHAPE = UNetConfig(
    channels=1, out_channels=1, widths=(24, 48, 64), attention=(False, True, True), heads=(4, 4, 4), blocks=1,
    groups=8, context=10, size=28,
)  # fmt: skip


def train_unet(mse_weight, perceptual_weight):
    """The exponential moving average of the weights, and the seconds it took."""
    torch.manual_seed(0)

    def loss(network, step):
        rng = generator("lesson 8", step)  # the same pictures, noise and sigmas for each loss
        indices = torch.randint(len(clean), (settings.batch,), generator=rng)
        cond = Cond(one_hot(labels[indices], torch.rand(settings.batch, 1, 1, generator=rng) > 0.1))
        sigma = draw_sigmas(schedule, settings.batch, rng)
        noise = torch.randn(clean[indices].shape, generator=rng)
        denoiser = Denoiser(on_states(network), schedule, PREDICTIONS["eps"])
        total = 0
        if mse_weight:
            total = total + mse_weight * denoising(denoiser, clean[indices], noise, sigma, cond)
        if perceptual_weight:  # weighted by the signal-to-noise ratio: at high noise, features say little
            x0 = clean[indices]
            denoised = denoiser(denoiser.noised(x0, noise, sigma), sigma, cond)
            distances = feature_distances(denoised, x0).mean(0)
            total = total + perceptual_weight * min_snr(sigma, 5.0, "x0") * distances
        return total

    state, start = State.begin(UNet(SHAPE), settings), time.perf_counter()
    for _ in train(state, loss, settings):
        pass
    return state.ema, time.perf_counter() - start


losses = {"MSE": (1.0, 0.0), "MSE + perceptual": (1.0, 0.1), "perceptual": (0.0, 0.1)}
networks, seconds = {}, {}
for name, weights in losses.items():
    networks[name], seconds[name] = train_unet(*weights)

# %% [markdown]
# ## Evaluation
#
# The classifier in the loss must not be the judge: a network trained against it may exploit its blind spots. A second
# classifier, initialised with another seed, measures accuracy: the share of drawn digits that it classifies as the
# digit asked for. It also gives features for the Fréchet distance, the usual measure of how similar two sets of
# pictures are (FID, the Fréchet inception distance, takes the features of an Inception network). The features of a
# thousand drawn digits and of a thousand real ones are two clouds of points; the distance compares their means and
# covariances. Between two sets of real digits it shows the best that can be reached.

# %%
judge = train_classifier(pictures, labels, full_or_short(1000, 10), seed=1)
wanted, steps = torch.arange(full_or_short(1000, 20)) % 10, full_or_short(20, 4)


@torch.no_grad()
def feature_statistics(images):
    """The mean and the covariance of the last layer's features."""
    features = torch.cat([judge.maps(part)[-1].mean(dim=(2, 3)) for part in images.split(500)]).double()
    return features.mean(0), features.T.cov()


def frechet_distance(one, other):
    """Between two normal distributions (mean, covariance). Source: Heusel et al., 1706.08500, equation 6."""
    (mean_a, cov_a), (mean_b, cov_b) = one, other
    root = torch.linalg.eigvals(cov_a @ cov_b).sqrt().real.sum()
    return ((mean_a - mean_b) ** 2).sum().item() + (cov_a.trace() + cov_b.trace() - 2 * root).item()


real, more_real = feature_statistics(test_pictures[: len(wanted)]), feature_statistics(test_pictures[-len(wanted) :])
accuracy_on_real = accuracy(judge, test_pictures, test_labels)
table = [("real digits", accuracy_on_real, frechet_distance(more_real, real), torch.nan, 0.0)]
samples = {}
sigma = draw_sigmas(schedule, full_or_short(1000, 50), torch.Generator().manual_seed(1))
held_out = 2 * test_pictures[: len(sigma)] - 1
noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(2))
for name, network in networks.items():
    denoiser = Denoiser(on_states(network), schedule, PREDICTIONS["eps"])
    with torch.no_grad():
        mse = denoising(denoiser, held_out, noise, sigma, Cond(one_hot(test_labels[: len(sigma)]))).mean().item()
    samples[name] = sample(denoiser, wanted, steps).clamp(-1, 1) / 2 + 0.5
    table.append(
        (
            name,
            accuracy(judge, samples[name], wanted),
            frechet_distance(feature_statistics(samples[name]), real),
            mse,
            seconds[name],
        )
    )
print(f"{'loss':>18} {'accuracy':>15} {'Fréchet distance':>18} {'MSE of the noise':>20} {'training, s':>18}")
for name, correct, distance, mse, took in table:
    print(f"{name:>18} {100 * correct:13.1f} % {distance:18.3f} {mse:20.4f} {took:18.0f}")

# %%
show([images[:10] for images in samples.values()], list(samples))
# %% [markdown]
# The measures disagree. The MSE of the noise is what the first network was trained to minimise. High accuracy and a
# small Fréchet distance to real digits are what one wants; a loss is good if it leads there.
#
# The perceptual loss gives the highest accuracy, also by a judge that was not used in training: its strokes are
# connected. But it ignores what its classifier's features do not see, and grey specks on black are the price: it has
# the largest Fréchet distance and the largest MSE. Both losses together reach the MSE of the first network with a
# higher accuracy, but training takes twice the time, in which MSE alone could have been trained for twice the steps.
# Perceptual losses are at home where sharp edges matter more than exact values, in the decoders of autoencoders; as the
# only loss of a network that predicts noise, they are not enough.
#
# ## What to try next
#
# * Leave the first layer out of the comparison, or the last. Which one matters?
# * Multiply or divide the perceptual weight in `losses` by ten.
# * The features of any network will do: compare latents by the features of lesson 5's decoder.
