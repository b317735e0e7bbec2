"Figures: fonts that stay text, names that do no harm, colours that can be told apart, and nothing drawn twice."
import re
import subprocess
import sys
import warnings
import zlib

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from mixsupcon.lab import figures

HOSTILE = ["<script>alert(1)</script>", "$\\frac{1}$", "cost in $", "100 % & #", "猫", "犬", "مرحبا", "x"*200,
           "x"*199 + "y", "", "\t\n", "new\nline", "null\0", "\ud800", "\u202eright to left", "back\\slash", "_^{}~",
           "\U000F0000", "é", "e\u0301"]


def blobs(classes, each=20):
    "A t-SNE result of points around as many centres on a circle."
    rng, y = np.random.default_rng(0), np.arange(each*len(classes)) % len(classes)
    angle = 2*np.pi*y/len(classes)
    xy = 10*np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 1, (len(y), 2))
    return dict(xy=xy.tolist(), y=y.tolist(), classes=classes, silhouette=.7, knn20=.95, gap=.02)


def confusion(classes):
    return dict(confusion=(30*np.eye(len(classes), dtype=int) + 1).tolist(), classes=classes)


def fonts(pdf):
    "The kinds of font in a PDF, compressed parts included."
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S)
    for stream in streams:
        try:
            pdf += zlib.decompress(stream)
        except zlib.error:
            pass
    return {*re.findall(rb"/Subtype\s*/(Type3|Type42|TrueType|Type0|CIDFontType2)", pdf)}


@pytest.mark.slow
@pytest.mark.parametrize("draw", [
    lambda: figures.draw_confusion(confusion(["cat", "dog"])), lambda: figures.draw_tsne({"a": blobs(["cat", "dog"])})])
def test_text_in_a_pdf_stays_text(draw, tmp_path):
    "TrueType, never Type 3: by us, and where a user saves the figure as matplotlib does."
    kinds = fonts(figures.encode_figure(draw(), "pdf"))
    assert kinds and b"Type3" not in kinds
    draw().savefig(tmp_path/"own.pdf")
    assert fonts((tmp_path/"own.pdf").read_bytes()) == kinds
    bare, ax = plt.subplots()
    ax.set_title("words")
    with plt.rc_context({"pdf.fonttype": 3}):
        bare.savefig(tmp_path/"bare.pdf")
    plt.close(bare)
    assert b"Type3" in fonts((tmp_path/"bare.pdf").read_bytes()), "the test would see it"


@pytest.mark.slow
def test_hostile_names_are_drawn():
    "As they are, without a warning for each, and none taken for a formula or for another."
    figures.warn_of_boxes.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert figures.encode_figure(figures.draw_tsne({"$a$": blobs(HOSTILE)}), "pdf")
        assert figures.encode_figure(figures.draw_confusion(confusion(HOSTILE)), "png")
    assert len(caught) <= 1, [str(warning.message) for warning in caught]
    shown = figures.printable(HOSTILE)
    assert len({*shown}) == len(HOSTILE) and max(map(len, shown)) <= 28 + len(" (19)")
    assert shown[:4] == HOSTILE[:4] and all(name.isprintable() and name for name in shown)


def test_a_name_is_not_a_formula():
    "The same name is as wide in a figure as where formulas are switched off, and wider than as a formula."
    with plt.rc_context(figures.STYLE):
        fig, axes = figures.panels()
        ours = axes[0, 0].text(0, 0, "$x^2$")
    formula = axes[0, 0].text(0, 0, "$x^2$", parse_math=True, fontsize=9)
    plain = axes[0, 0].text(0, 0, "$x^2$", parse_math=False, fontsize=9)
    widths = [text.get_window_extent().width for text in (ours, formula, plain)]
    plt.close(fig)
    assert widths[0] == widths[2] > 1.2*widths[1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 10, 24, 25, 100])
def test_classes_can_be_told_apart(n):
    "Each coloured class has its own pair of colour and marker and its name; what has none is grey."
    classes = [f"class {i}" for i in range(n)]
    fig = figures.draw_tsne({"run": blobs(classes)})
    ax, coloured = fig.axes[0], n if n <= 24 else 8
    styles = {(tuple(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes())
              for group in ax.collections if len(group.get_offsets())}
    assert len(styles) == coloured + (n > 24)
    assert [text.get_text() for text in ax.texts] == classes[:coloured]
    fig.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(.95, .9).overlaps(b.shrunk(.95, .9))]
    assert not overlaps


def test_highlighted_classes():
    classes = [f"class {i}" for i in range(60)]
    fig = figures.draw_tsne({"run": blobs(classes)}, highlight=("class 7", "class 50"))
    assert [text.get_text() for text in fig.axes[0].texts] == ["class 7", "class 50"]
    with pytest.raises(Exception, match="unknown class 'class 77'.*did you mean 'class 7'"):
        figures.draw_tsne({"run": blobs(classes)}, highlight=("class 77",))


@pytest.mark.slow
def test_nothing_changes_for_the_user(tmp_path):
    "Drawing and saving leave matplotlib's settings and its open figures as they are."
    before, opened = dict(matplotlib.rcParams), plt.get_fignums()
    fig = figures.draw_confusion(confusion(["cat", "dog"]))
    figures.save_figure(fig, tmp_path/"a.pdf")
    fig.savefig(tmp_path/"a.png")
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == opened


def test_a_reason_may_be_long(recwarn):
    "It is shown whole, without a warning."
    picture = figures.encode_figure(figures.draw_nothing("no run is complete yet: " + "words "*40), "png")
    assert not recwarn.list and int.from_bytes(picture[16:20], "big") > 1500


@pytest.mark.slow
def test_drawing_a_run_takes_no_seaborn():
    "It costs a second, and only heat maps of studies need it."
    code = ("import sys; from mixsupcon.lab.figures import draw_confusion\n"
            "draw_confusion(dict(confusion=[[2, 1], [0, 3]], classes=['a', 'b']))\n"
            "print({'seaborn', 'pandas', 'torch'} & {*sys.modules})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
