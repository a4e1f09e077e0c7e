"""What else the networks do: latent files, captions, retrieval, metrics."""
