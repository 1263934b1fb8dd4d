"""Rebuilds all embedded data and mini models in order (`make assets`); finished parts are gone over quickly.

Every part keeps its checkpoints in the cache and goes on from them, so an interrupted build is simply started again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DATA = ("build_emoji", "build_fashion", "build_lexicon")
MODELS = (
    "train_vae",
    "train_clip",
    "train_judges",
    "train_captioner",
    "train_image_backbones",
    "train_text_backbones",
    "train_unet",
    "distill_unet",
    "train_glide",
    "measure_assets",
    "measure_glide",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--only", nargs="+", choices=(*DATA, *MODELS), default=(*DATA, *MODELS))
    args = parser.parse_args()
    for number, part in enumerate(args.only, 1):
        print(f"[{number}/{len(args.only)}] {part}", flush=True)
        command = [sys.executable, str(HERE / f"{part}.py"), "--cache", str(args.cache)]
        if part in MODELS:
            command += ["--device", args.device]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{part} failed; start again with --only to go on from its last checkpoint")


if __name__ == "__main__":
    main()
