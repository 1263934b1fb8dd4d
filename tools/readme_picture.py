"""Draws README's picture: one generated image of each class before and after a run, same prompts and seeds.

python tools/readme_picture.py runs/demo docs/pictures/demo.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from florilegium.runs import pictures

SCALE, LINE, COLUMNS = 3, 20, 12


def first_of_each(path: Path) -> tuple[np.ndarray, list[str]]:
    images, captions = pictures.read_raw(path)
    places = [at[0] for at in pictures.by_caption(captions).values()]
    return images[places], [captions[i] for i in places]


def main() -> None:
    run, target = map(Path, sys.argv[1:3])
    files = sorted((run / "samples").glob("method-round-*.npz"))
    (before, names), (after, _) = first_of_each(files[0]), first_of_each(files[-1])
    side = before.shape[-1] * SCALE
    bands = -(-len(names) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (side + 4), bands * (2 * side + LINE + 10)), pictures.PAPER)
    pen = ImageDraw.Draw(sheet)
    for n, name in enumerate(names):
        x, y = n % COLUMNS * (side + 4), n // COLUMNS * (2 * side + LINE + 10)
        sizes = (ImageFont.load_default(size=size) for size in range(12, 6, -1))
        font = next((f for f in sizes if f.getlength(name) <= side), ImageFont.load_default(size=6))
        pen.text((x + 2, y + 2), name, fill=pictures.INK, font=font)
        for k, image in enumerate((before[n], after[n])):
            piece = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            sheet.paste(piece.resize((side, side), Image.Resampling.NEAREST), (x, y + LINE + k * (side + 2)))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(pictures.png(sheet))


if __name__ == "__main__":
    main()
