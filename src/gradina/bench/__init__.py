"""How long things take, side by side with the peers that are installed, in one run."""
