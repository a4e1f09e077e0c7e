"""The networks: text and image towers, autoencoder, U-Net."""
