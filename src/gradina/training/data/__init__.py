"""Training data: image folders, caption files, shards, icons, synthetic scenes."""
