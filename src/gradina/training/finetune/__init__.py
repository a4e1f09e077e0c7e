"""A model and one's own pictures: fine-tuning, LoRA, textual inversion, DreamBooth, Imagic."""
