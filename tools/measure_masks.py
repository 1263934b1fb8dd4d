"""How well the masks of florilegium/data/masks.py meet the transparency of the emoji's sources, style by style.

The embedded pictures are drawn on white and have lost it. This draws them again, and prints the mean over pictures of
intersection / union of both masks, and the share of pictures below 0.5. It needs `florilegium[assets]` and npm.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import resvg_py
import torch
from build_emoji import concepts
from icon_sets import Finder, rendered_png
from npm_packages import STYLES, unpack
from PIL import Image

from florilegium.data.masks import foreground

OPAQUE = 128  # of 255: a pixel that shows more of the object than of the ground


def intersection_over_union(svg: str) -> float:
    """Of both masks of one drawing; 1 where both are empty."""
    alpha = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA").getchannel("A")
    drawn = np.array(Image.open(io.BytesIO(rendered_png(svg))))
    true, found = np.array(alpha) >= OPAQUE, foreground(torch.from_numpy(drawn).permute(2, 0, 1)[None])[0].numpy()
    union = (true | found).sum()
    return float((true & found).sum() / union) if union else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    modules = unpack(parser.parse_args().cache)
    emojis = [emoji for emoji in concepts(modules) if emoji["class"] >= 0]
    finder = Finder(modules)
    print("| style | pictures | mean IoU | IoU < 0.5 |\n|---|---:|---:|---:|")
    for style in STYLES:
        names = [name for emoji in emojis if (name := finder.icon(style, emoji)) is not None]
        found = [intersection_over_union(finder.svg(style, name)) for name in names]
        low = sum(value < 0.5 for value in found) / len(found)
        print(f"| {style} | {len(found)} | {sum(found) / len(found):.3f} | {100 * low:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
