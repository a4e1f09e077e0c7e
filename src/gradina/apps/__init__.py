"""The faces: they may import anything, and nobody imports them."""
