"""The model card, README.md: what a stranger needs to know of a saved model, as the hub shows it."""

from __future__ import annotations

import re

import torch
from torch import nn

from gradina.weights.components import Components

CARD = """\
---
library_name: diffusers
pipeline_tag: {task}
{license}tags:
- gradina
- stable-diffusion
- text-to-image
---

# {name}

A text-to-image diffusion model with the anatomy of Stable Diffusion, saved by Gradina.
{about}
| part | parameters | shape |
|---|---:|---|
| text tower | {text_parameters:,} | {text.layers} layers of width {text.width}, {text.length} tokens |
| U-Net | {unet_parameters:,} | widths {widths}, predicts {prediction} |
| autoencoder | {vae_parameters:,} | {vae.factor} times smaller along each side, {vae.latent_channels} channels |

{clip}\
Stored as {dtype}. Draws {d.width} x {d.height} pixels by default, in {d.steps} steps of `{d.sampler}` \
on the `{d.schedule}` schedule
at guidance scale {d.guidance_scale:g}.

## Use

```python
import gradina

model = gradina.load("{name}")  # this folder, or its name on the hub
request = gradina.Request(prompt="...", steps={d.steps}, guidance_scale={d.guidance_scale:g}, seed=1)
for picture in gradina.generate(model, request):
    picture.save(f"{{picture.seed}}.png")
```

```python
import torch
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("{name}", torch_dtype=torch.float32)  # or its name on the hub
image = pipe("...", num_inference_steps={d.steps}, guidance_scale={d.guidance_scale:g}, \
width={d.width}, height={d.height}{inputs}).images[0]
image.save("picture.png")
```
"""
CLIP = """\
In `clip/` is the contrastive pair that goes with it, for `gradina caption` and `gradina search`.

"""
PREDICTIONS = {"eps": "the noise (eps)", "v": "the velocity (v)", "x0": "the picture (x0)"}


def model_card(
    components: Components, dtype: torch.dtype | None = None, license: str | None = None, about: str = ""
) -> str:
    """README.md for a saved model; `license` is an identifier of the hub ("apache-2.0"), `about` more Markdown."""
    text, unet = components.text, components.unet.config
    inpaint = unet.channels == 2 * unet.out_channels + 1
    return CARD.format(
        task="image-to-image" if inpaint else "text-to-image",
        license=f"license: {license}\n" if license else "",
        name=components.name,
        about=f"\n{about.strip()}\n" if about else "",
        text_parameters=sum(p.numel() for name, p in text.named_parameters() if not name.startswith("projection")),
        unet_parameters=_parameters(components.unet),
        vae_parameters=_parameters(components.vae),
        text=text.config,
        vae=components.vae.config,
        widths=", ".join(map(str, unet.widths)),
        prediction=PREDICTIONS.get(components.prediction, components.prediction),
        clip=CLIP if components.clip else "",
        dtype=_dtype_name(components, dtype),
        d=components.defaults,
        pipeline="StableDiffusionInpaintPipeline" if inpaint else "StableDiffusionPipeline",
        inputs=", image=image, mask_image=mask" if inpaint else "",
    )


def with_dtype(card: str, components: Components, dtype: torch.dtype | None = None) -> str:
    """A card with the dtype that the model is stored in."""
    return re.sub(r"^Stored as \w+\.", f"Stored as {_dtype_name(components, dtype)}.", card, flags=re.M)


def _dtype_name(components: Components, dtype: torch.dtype | None) -> str:
    return str(dtype or next(components.unet.parameters()).dtype).removeprefix("torch.")


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
