"""Things put into a network and taken out again, bit-identically."""
