"""What other programs write into picture files."""
