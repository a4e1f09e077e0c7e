"""The options of all verbs, each once, with its help and its default in words."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gradina.errors import RequestError
from gradina.request import RATES_NAMES, SAMPLER_NAMES, SCHEDULE_NAMES

MAY_BE_EMPTY = ("PROMPT...", "TEXT", "WORDS...")


def not_empty(parameter: typer.CallbackParam, value: Any) -> Any:
    """The value. Raises RequestError for an empty text, which a shell makes of an unset variable."""
    if "" in (value if isinstance(value, list) else [value]) and parameter.metavar not in MAY_BE_EMPTY:
        raise RequestError(f"{parameter.opts[0]}: got an empty text, expected {parameter.metavar}")
    return value


def arg(metavar: str, text: str) -> Any:
    """An argument without a default."""
    return typer.Argument(metavar=metavar, show_default=False, help=text, callback=not_empty)


def opt(metavar: str, default: str | bool, text: str, *names: str, minimum: int | None = None) -> Any:
    """An option; its help shows `default` as the default, or for True the value itself."""
    return typer.Option(*names, metavar=metavar, show_default=default, help=text, min=minimum, callback=not_empty)


def flag(default: str, text: str, *names: str) -> Any:
    """A flag; its help shows `default` as what holds without it."""
    return typer.Option(*names, show_default=default, help=text)


MODEL_DEFAULT = "the model's own"
RECORDED = "the one named in the file"
PAIR_HELP = "A model with an image tower: shipped, a folder (also of a CLIP model), or an owner/name of the hub."
MODEL_HELP = "A shipped model's name, a folder, a file, or an owner/name of the hub."

# Which model, and how it computes
Model = Annotated[str | None, opt("MODEL", "the shipped model", MODEL_HELP, "--model", "-m")]
RecordedModel = Annotated[str | None, opt("MODEL", RECORDED, MODEL_HELP, "--model", "-m")]
Variant = Annotated[str | None, opt("NAME", "none", "Variant of a folder's files, such as fp16.")]
Prediction = Annotated[str | None, opt("NAME", "as detected", "What the U-Net predicts: eps, v or x0.")]
Device = Annotated[str | None, opt("NAME", "the fastest here", "Where to compute: cpu, cuda, mps.")]
BenchDevice = Annotated[str, opt("NAME", True, "Where to compute: cpu, cuda, mps.", "--device")]
Dtype = Annotated[str | None, opt("NAME", "the quickest here", "Dtype to compute in: fp32, bf16, fp16.")]
Engine = Annotated[str | None, opt("NAME", "auto", "What computes: auto, eager, compile, openvino.")]
LowMemory = Annotated[bool, flag("all", "Keep one network at a time in memory.", "--low-memory")]
Tiny = Annotated[
    str | None, opt("DECODER", "none", "A tiny decoder (TAESD) for films and strips: a folder, a file, an owner/name.")
]
Vae = Annotated[
    str | None,
    opt("VAE", "the model's own", "An autoencoder: a file of it or of a whole model, a folder, or an owner/name."),
]
RecordedVae = Annotated[str | None, opt("VAE", RECORDED, "An autoencoder in place of the model's own.", "--vae")]
Threads = Annotated[int | None, opt("N", "one for each core", "Threads to compute with.", minimum=1)]
Preset = Annotated[
    str | None, opt("NAME", "none", "Settings that `gradina tune` found: fast, balanced, best, or 1.5s.")
]
Quiet = Annotated[bool, flag("shown", "Show no progress.", "--quiet", "-q")]

# What to draw
Prompts = Annotated[list[str], arg("PROMPT...", "What to draw; each prompt gets its own pictures.")]
Negative = Annotated[str, opt("TEXT", "none", "What to keep away from.", "--negative-prompt", "-n")]
Steps = Annotated[int | None, opt("N", MODEL_DEFAULT, "Steps from noise to the picture.", "--steps", "-s")]
Scale = Annotated[
    float | None,
    opt("X", MODEL_DEFAULT, "How strongly to follow the prompt; 1, or 0: the prompt alone.", "--guidance-scale", "-g"),
]
Rescale = Annotated[float, opt("X", True, "0..1: how much of the contrast that guidance adds is taken back.")]
Interval = Annotated[str | None, opt("LOW:HIGH", "all", "Noise levels (sigma) at which guidance acts.")]
Sampler = Annotated[str | None, opt("NAME", MODEL_DEFAULT, f"One of {', '.join(SAMPLER_NAMES)}.")]
Schedule = Annotated[str | None, opt("NAME", MODEL_DEFAULT, f"One of {', '.join(SCHEDULE_NAMES)}.")]
Eta = Annotated[
    float | None, opt("X", "the sampler's own", "0..1: noise put back, by ddim, stochastic samplers, optimizers.")
]
Rates = Annotated[str | None, opt("NAME", "levels", f"Of sgd, momentum, nesterov, adam: {', '.join(RATES_NAMES)}.")]
Seed = Annotated[int | None, opt("N", "a new one", "Of the first picture; the next ones take N + 1, ...")]
Width = Annotated[int | None, opt("PIXELS", MODEL_DEFAULT, "A multiple of 8.", "--width", "-W")]
Height = Annotated[int | None, opt("PIXELS", MODEL_DEFAULT, "A multiple of 8.", "--height", "-H")]
Images = Annotated[int, opt("N", True, "Pictures for each prompt.", "--images", "-k")]
InitImage = Annotated[str | None, opt("FILE", "none", "A picture to start from.", "--init-image", "-i")]
Strength = Annotated[float, opt("X", True, "0..1: how much of the start picture may change.")]
Lora = Annotated[
    list[str] | None, opt("FILE[:SCALE]", "none", "A LoRA to draw with, and how much of it; give it again for more.")
]
Concept = Annotated[
    list[str] | None,
    opt("[WORD=]FILE", "none", "A word that was learnt by textual inversion, to use in prompts; WORD calls it so."),
]
Edit = Annotated[
    str | None,
    opt("FILE[:SHARE]", "none", "An edit that `gradina imagic` made, and the prompt's share in it (0.7)."),
]
Reuse = Annotated[int, opt("N", True, "Compute the U-Net's inner part at every N-th call only: quicker, not exact.")]
MaskImage = Annotated[str | None, opt("FILE", "none", "White is drawn anew, black is kept.")]

# Where to put it
FILES = "File (.png, .jpg, .webp) or folder; several pictures are told apart by their seeds."
Output = Annotated[str | None, opt("PATH", "PROMPT-SEED.png", FILES, "--output", "-o")]
AgainOutput = Annotated[str | None, opt("PATH", "PICTURE-again.png", "File or folder to write to.", "--output", "-o")]
Target = Annotated[str | None, opt("FILE", "beside the source", "File to write.", "--output", "-o")]
Grid = Annotated[
    list[str] | None,
    opt("FIELD=A,B,...", "none", "One labelled picture over the values of a field; give it twice for two fields."),
]
Film = Annotated[str | None, opt("FILE", "none", "Also write how the first picture emerges: .gif, .webp or .apng.")]
Strip = Annotated[str | None, opt("FILE", "none", "Also write eight moments of that side by side: .png.")]

# Files
Picture = Annotated[str, arg("PICTURE", "A picture file.")]
GeneratedPicture = Annotated[str, arg("PICTURE", "A picture made by gradina or by A1111's web UI.")]
LatentsFile = Annotated[str, arg("LATENTS", "A file made by `gradina encode`.")]
Json = Annotated[bool, flag("as text", "Print the request as JSON.", "--json")]
ConvertSource = Annotated[
    str, arg("SOURCE", "A folder, a .safetensors file, a pickle (.ckpt, .pt, .bin), or a model's name.")
]
ConvertTarget = Annotated[
    str, arg("TARGET", "A folder (layout of diffusers), or a .safetensors file (original layout).")
]
StoredDtype = Annotated[str | None, opt("NAME", "as it is", "Dtype to store: fp32, bf16, fp16.", "--dtype")]
LocalModel = Annotated[str, arg("MODEL", "A shipped model's name, a folder, or a file.")]
HubName = Annotated[str, arg("OWNER/NAME", "Where to put it on the hub.")]

# Words for pictures
Pictures = Annotated[list[str], arg("PICTURE...", "Picture files, or folders of them.")]
Folder = Annotated[str, arg("FOLDER", "Where to look, also in the folders below.")]
Words = Annotated[list[str], arg("WORDS...", "What the picture shows.")]
PairModel = Annotated[str | None, opt("MODEL", "a shipped one", PAIR_HELP, "--model", "-m")]
Phrases = Annotated[str | None, opt("FILE", "the model's own", "Texts to choose from, one per line.")]
Best = Annotated[int, opt("N", True, "How many to print.", "--best", "-b", minimum=1)]
Captioner = Annotated[
    str, opt("NAME", True, "clip: the best phrases by our CLIP; blip, or any captioning model: sentences (an extra).")
]
WriteCaptions = Annotated[bool, flag("print", "Write a .txt beside each picture that has none.", "--write")]
GridOfHits = Annotated[str | None, opt("FILE", "none", "Also write what is found as one labelled picture.")]
AsJson = Annotated[bool, flag("as text", "Print JSON.", "--json")]

# Training
Recipe = Annotated[str, arg("RECIPE", "A TOML file, such as recipes/digits.toml.")]
RunFolder = Annotated[str | None, opt("FOLDER", "runs/NAME", "Folder of the run; the same command resumes it.")]

# Fine-tuning
ImageFolder = Annotated[str, arg("FOLDER", "Pictures, with captions where the method reads any; or a .tar shard.")]
FinetuneFolder = Annotated[str, opt("FOLDER", True, "Folder of the run; the same command resumes it.", "--out", "-o")]
Full = Annotated[bool, flag("a LoRA", "Train all weights instead of a LoRA.", "--full")]
TrainingSize = Annotated[
    int | None, opt("PIXELS", MODEL_DEFAULT, "Side of a square picture of as many pixels.", "--size", minimum=16)
]
Flip = Annotated[bool, flag("off", "Train on mirror images, too.", "--flip")]
RandomCrop = Annotated[bool, flag("the middle", "Crop pictures at random.", "--random-crop")]
Enlarge = Annotated[bool, flag("off", "Accept pictures that are too small.", "--enlarge")]
ValidationFolder = Annotated[
    str | None, opt("FOLDER", "none", "Pictures with captions whose loss is logged.", "--validation")
]
SamplePrompts = Annotated[
    list[str] | None, opt("PROMPT", "what fits", "What to sample; give it again for more.", "--prompt", "-p")
]
SampleEvery = Annotated[int, opt("N", True, "Steps between samples.", minimum=1)]
DryRun = Annotated[bool, flag("off", "Print the memory estimate, and stop.", "--dry-run")]
Word = Annotated[str, opt("WORD", True, "The new word.")]
InitWord = Annotated[str, opt("WORD", True, "A word for the kind of subject, as which the new word begins.")]
Instance = Annotated[str, opt("PROMPT", True, "What the pictures show, with a rare word: a sks dog.", "--instance")]
Class = Annotated[str | None, opt("PROMPT", "none", "Their class, a dog, which is preserved.", "--class")]
ClassPictures = Annotated[int, opt("N", True, "Pictures of the class, drawn by the model itself.", minimum=1)]
TargetPrompt = Annotated[str, arg("PROMPT", "What the picture is to become.")]
TextSteps = Annotated[int | None, opt("N", "as the paper", "Steps of the first stage, for the text.", minimum=1)]

# How long things take
Only = Annotated[
    str | None,
    opt("PARTS", "all", "Some of machine, attention, works, pictures, learning, imports, cold; commas between."),
]
Rounds = Annotated[int, opt("N", True, "Turns of everyone.", minimum=1)]
Size = Annotated[int, opt("PIXELS", True, "Side of the pictures.", minimum=64)]
BenchJson = Annotated[str | None, opt("FILE", "none", "Write the figures as JSON.", "--output", "-o")]
Minutes = Annotated[float, opt("N", True, "How long to try, about.", minimum=0)]
TunedPrompts = Annotated[list[str] | None, typer.Argument(metavar="[PROMPT...]", help="What to draw in trying.")]
Plot = Annotated[str | None, opt("FILE", "none", "Draw them as a .png, .svg or .pdf.")]
