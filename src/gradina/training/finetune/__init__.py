"""Fine-tuning on your own pictures: all weights, LoRA, textual inversion, DreamBooth, Imagic."""
