"""`florilegium convert glide BASE UPSAMPLER DIR`: published checkpoints as a pipeline directory for diffusion.model."""

from __future__ import annotations

import argparse
from pathlib import Path

from florilegium.diffusion.glide.conversion import convert
from florilegium.runs.terminal import console

ERRORS = (ValueError, OSError)
VOCABULARY = "openai-community/gpt2"  # GLIDE's byte-pair vocabulary is GPT-2's, byte for byte


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What to convert, and where to."""
    command.add_argument("model", choices=("glide",), help="the family of the checkpoints")
    command.add_argument("base", type=Path, help="base.pt: the model of 64 x 64 images")
    command.add_argument("upsampler", type=Path, help="upsample.pt: the model that enlarges them to 256 x 256")
    command.add_argument("directory", type=Path, help="where the pipeline is written; it should not exist")
    command.add_argument(
        "--vocabulary",
        default=VOCABULARY,
        metavar="FILE",
        help="GPT-2's merges: vocab.bpe(.gz), merges.txt, a tokenizer directory, or a hub id (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Convert and say how the result is used. ValueError, in one line, for files that do not fit."""
    if options.directory.exists():
        raise ValueError(f"{options.directory} exists already; choose another directory")
    terminal = console()
    with terminal.status(f"converting {options.base.name} and {options.upsampler.name}"):
        whole = convert(options.base, options.upsampler, options.vocabulary, options.directory)
    millions = sum(p.numel() for part in (whole.unet, whole.upsampler) for p in part.parameters()) / 1e6
    print(f"{options.directory}: a GlidePipeline, {millions:.0f} million weights in its two U-Nets")
    print(f"florilegium run diffusion=glide diffusion.model={options.directory.resolve()}")
