"""Makes src/gradina/assets/clip_merges.txt.gz, the byte-pair merges of CLIP, from the file CLIP was published with.

    pip download --no-deps open-clip-torch -d out && unzip out/open_clip_torch-*.whl -d out
    python tools/make_clip_vocabulary.py out/open_clip/bpe_simple_vocab_16e6.txt.gz

The source lists 262,144 merges; CLIP uses the first 48,894: 49,408 entries less 512 byte letters, start and end.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

from gradina.models.bpe import ASSET, vocabulary_of

MERGES = 49408 - 512 - 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("-o", "--output", type=Path, default=ASSET)
    options = parser.parse_args()
    header, *lines = gzip.decompress(options.source.read_bytes()).decode().split("\n")
    merges = [(left, right) for left, right in (line.split(" ") for line in lines[:MERGES])]
    if "#version" not in header or len(vocabulary_of(merges)) != 49408:
        parser.error(f"{options.source} is not CLIP's list: expected a #version line and {MERGES} distinct merges")
    text = "\n".join(" ".join(merge) for merge in merges) + "\n"
    options.output.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
