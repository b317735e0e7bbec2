"""Draws idea.png: what a mixer returns, on scikit-learn's two sample photographs.

    python docs/images/idea.py
"""
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images

from mixsupcon import mix
from mixsupcon.core.options import stream

NAMES = "temple", "flower"
MIXERS = dict(mixup=37, cutmix=37, fmix=6)   # and the seed of each


def photographs(side: int = 192) -> torch.Tensor:
    "The middle of both photographs as images (2, 3, side, side) between 0 and 1."
    middle = [Image.fromarray(photo).crop((107, 0, 534, 427)).resize((side, side), Image.Resampling.LANCZOS)
              for photo in load_sample_images().images]
    return torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in middle]
                       ).view(2, side, side, 3).permute(0, 3, 1, 2)/255


def draw_column(figure: Figure, left: float, width: float, images: torch.Tensor, title: str, captions: list) -> None:
    "Two images, one above the other, each with a caption."
    for i, (image, caption) in enumerate(zip(images, captions)):
        ax = figure.add_axes([left, .57 - .43*i, width, .345])
        ax.imshow(image.permute(1, 2, 0))
        ax.set_axis_off()
        ax.text(.5, -.04, caption, transform=ax.transAxes, ha="center", va="top", fontsize=8.5)
        if i == 0:
            ax.set_title(title, fontsize=11, pad=6, family="monospace")


def draw_matrix(figure: Figure, left: float, width: float, w: torch.Tensor) -> None:
    "The mixing matrix, each row beside the mixture that it made."
    for i, row in enumerate(w):
        ax = figure.add_axes([left, .655 - .43*i, width, .175])
        ax.imshow(row[None], cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
        for j, share in enumerate(row.tolist()):
            ax.text(j, 0, f"{share:.2f}", ha="center", va="center", fontsize=9)
        ax.set(yticks=[], xticks=[0, 1])
        ax.set_xticklabels(NAMES, fontsize=7.5)
        ax.tick_params(length=0, pad=2)
        for edge in ax.spines.values():
            edge.set_color("0.6")
        if i == 0:
            ax.set_title("w", fontsize=11, family="monospace", pad=6)


def draw() -> Figure:
    "The photographs, and for each mixer the mixtures and the matrix."
    x = photographs()
    figure = plt.figure(figsize=(9.6, 3.9), dpi=110, facecolor="white")
    draw_column(figure, .01, .14, x, "x", NAMES)
    for k, (mixer, seed) in enumerate(MIXERS.items()):
        mixed, w = mix(x, x, stream(seed, "figure"), mixer, alpha=1., partner="reverse")
        labels = [", ".join(f"{share:.0%} {name}" for share, name in zip(row.tolist(), NAMES)) for row in w]
        left = .185 + .275*k
        draw_column(figure, left, .14, mixed, mixer, labels)
        draw_matrix(figure, left + .15, .105, w)
    figure.text(.5, .015, 'mixed, w = mix(x, x, generator, "cutmix")         labels of the mixtures = w @ labels',
                ha="center", fontsize=10, family="monospace")
    return figure


if __name__ == "__main__":
    path = Path(__file__).with_suffix(".png")
    draw().savefig(path)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
