"""The model card: front matter that the hub reads, and true figures."""

from huggingface_hub import ModelCard

from gradina.weights.formats.diffusers import write_folder
from gradina.weights.model_card import model_card


def test_front_matter_and_figures(tiny, folder):
    write_folder(tiny("sd2"), folder)
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "text-to-image"
    assert {"gradina", "stable-diffusion"} <= set(data["tags"])
    assert f"{sum(p.numel() for p in tiny('sd2').unet.parameters()):,}" in card.text
    assert "velocity" in card.text
    assert "`ddim`" in card.text
    assert "16 x 16" in card.text


def test_license_and_about(tiny):
    card = ModelCard(model_card(tiny(), license="apache-2.0", about="Trained on nothing at all."))
    assert card.data.to_dict()["license"] == "apache-2.0"
    assert "Trained on nothing at all." in card.text


def test_inpainting_card_passes_image_and_mask(tiny):
    card = model_card(tiny("inpainting"))
    assert "StableDiffusionInpaintPipeline" in card
    assert "mask_image=mask" in card
