"""The mathematics of diffusion: everything speaks sigma and denoised; imports torch only."""
