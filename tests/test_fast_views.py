"Views in chunks, in sorted slices and compiled are the plain views; memory is bounded, and no device is waited for."
import mixsupcon.core.views as module
import pytest
import torch
from mixsupcon.core.options import stream
from mixsupcon.core.views import (
    Views,
    adjust_all,
    adjust_sorted,
    draw_views,
    hue,
    normalise,
    pad_and_crop,
    random_view,
    turns,
    views,
    views_at_once,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as V

STATS = (.5, .4, .3), (.25, .2, .3)
ORDERS = [(False, False), (True, False), (False, True), (True, True)]   # colour first, gray first


def photos(n, side):
    return torch.randint(256, (n, 3, side, side), generator=stream(0, "images"), dtype=torch.uint8)


def drawn(n, side, **given):
    usual = dict(crop_min=.2, flip=.5, jitter=.4, gray=.2, blur=.5)
    return draw_views(n, (side, side), stream(0, "draw"), **usual | given)


@pytest.mark.slow
@pytest.mark.parametrize("colour_first, gray_first", ORDERS)
@pytest.mark.parametrize("side, out", [(16, 16), (12, 24), (24, 12)])
def test_chunks_change_no_bit(monkeypatch, side, out, colour_first, gray_first):
    "Whatever the length of a chunk, down to a single image (views of less than 12 pixels are equal but for rounding)."
    x, draw = photos(23, side), drawn(23, side)
    whole = views_at_once(x, draw, *STATS, out, colour_first, gray_first)
    for length in (1, 5, 22, 23):
        monkeypatch.setattr(module, "chunk_length", lambda x, out: length)
        assert torch.equal(views(x, draw, *STATS, out, colour_first, gray_first), whole)
        assert torch.allclose(views(x, draw, *STATS, 8), views_at_once(x, draw, *STATS, 8), atol=1e-5)


@pytest.mark.parametrize("given", [
    {}, dict(jitter_prob=1., hue_share=1.), dict(jitter=1., hue_share=.5), dict(gray=1.), dict(jitter=0.)])
def test_sorted_is_plain(given):
    "Every image gets its adjustments in its own order, whoever else is in the batch."
    x, draw = photos(60, 8)/255., drawn(60, 8, **given)
    for gray_first in (False, True):
        which = turns(draw, gray_first)
        assert torch.equal(adjust_sorted(x.clone(), *which), adjust_all(x, *which))


def test_hue_where_channels_are_equal():
    "All colours of five levels, in which every channel is the largest, ties included."
    level = torch.linspace(0, 1, 5)
    x = torch.cartesian_prod(level, level, level).T.reshape(1, 3, 5, 25)
    for f in (-.5, -1/3, -.1, 0., .05, 1/6, .5):
        assert (hue(x, f) - V.adjust_hue(x, f)).abs().max() < 1e-5 < 1/255


class Largest(TorchDispatchMode):
    "How many numbers the largest new tensors hold."

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        self.sizes += [t.numel() for t in (made if isinstance(made, (list, tuple)) else [made])
                       if isinstance(t, torch.Tensor) and not t._is_view()]
        return made


def test_memory_is_bounded(monkeypatch):
    "Between images and views no tensor is larger than those of one chunk, however large the batch is."
    room = 8*3*16*16   # eight images
    monkeypatch.setattr(module, "chunk_length", lambda x, out: 8)
    for n in (32, 128):
        x, draw = photos(n, 16), drawn(n, 16)
        with Largest() as largest:
            views(x, draw, *STATS)
        *rest, result = sorted(largest.sizes)
        assert result == x.numel() and rest[-1] <= room


def test_a_chunk_fits_the_caches():
    "Its images' or views' floats, whichever are more, for each thread; a single image if that is larger."
    threads = torch.get_num_threads()
    assert module.chunk_length(photos(1, 32), 32) == 256*threads
    assert module.chunk_length(photos(1, 16), 32) == module.chunk_length(photos(1, 32), 16) == 256*threads
    assert module.chunk_length(torch.empty(1, 3, 8000, 8000, device="meta"), 224) == 1


@pytest.mark.parametrize("given", [{}, dict(blur=.5), dict(colour_first="yes", gray_first="yes"), dict(crop="shift")])
def test_no_value_is_read_from_the_device(monkeypatch, given):
    "A meta tensor has no values: what asked for one, and so would wait for a GPU, would fail."
    monkeypatch.setattr(module, "on_device", lambda tensors, device: [t.to(device) for t in tensors])
    x = torch.empty(40, 3, 16, 16, dtype=torch.uint8, device="meta")
    assert random_view(Views(**given), x, stream(0, "draw"), *STATS).shape == x.shape
    assert pad_and_crop(x, stream(0, "draw"), *STATS).shape == normalise(x, *STATS).shape == x.shape


@pytest.mark.slow
def test_compiled_in_one_graph():
    "And compiled once: another draw, with other images in each slice, has the same graph."
    compiled = torch.compile(views, backend="aot_eager", fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    x = photos(20, 16)
    for seed in range(3):
        draw = draw_views(20, (16, 16), stream(seed, "draw"), .2, .5, .4, .2, blur=.5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.allclose(compiled(x, draw, *STATS), views(x, draw, *STATS), atol=1e-5)
