"Images are decoded to the same bits by TorchCodec and by Pillow, whichever is there."
import subprocess

import numpy as np
import pytest
import torch
from mixsupcon.core.options import refused, stream
from mixsupcon.lab import data, streaming
from PIL import Image
from warm import WARM

QUARTERS = range(1, 9)   # what the EXIF data of a camera can say


def picture(seed, high, wide):
    "Soft shapes and noise, (H, W, 3)."
    gen = stream(seed, "picture")
    soft = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5, generator=gen), (high, wide), mode="bicubic")[0]
    return (255*soft + 8*torch.randn(3, high, wide, generator=gen)).clamp(0, 255).byte().permute(1, 2, 0).numpy()


def by_both(path, monkeypatch):
    "The image as TorchCodec gives it, and as it is where that is not installed."
    file = streaming.read_bytes(path)
    one = streaming.decode_bytes(path, file)
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "jpeg_decoder", lambda: None)
        return one, streaming.decode_bytes(path, file)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_has_the_same_bits(tmp_path, monkeypatch, mode):
    path = tmp_path/"a.jpg"
    for seed in range(8):
        image = Image.fromarray(picture(seed, 1 + 17*seed, 90 - 11*seed)).convert(mode)
        for how in (dict(quality=30), dict(quality=95, progressive=True), dict(subsampling=0), dict(subsampling=1)):
            image.save(path, **how)
            one, other = by_both(path, monkeypatch)
            assert torch.equal(one, other) and torch.equal(one, data.decode(path))


@pytest.mark.parametrize("quarter", QUARTERS)
def test_an_image_stays_as_its_file_has_it(tmp_path, monkeypatch, quarter):
    "TorchCodec alone would turn it."
    path, exif = tmp_path/"a.jpg", Image.Exif()
    exif[0x112] = quarter
    Image.fromarray(picture(quarter, 20, 30)).save(path, exif=exif)
    one, other = by_both(path, monkeypatch)
    assert torch.equal(one, other) and one.shape == (3, 20, 30)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_data_change_nothing(tmp_path, monkeypatch):
    path, exif = tmp_path/"a.jpg", Image.Exif()
    exif[0x112], exif[0x10e] = 1, "a description"
    Image.fromarray(picture(0, 20, 30)).save(path, exif=exif)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    first = whole.index(b"Exif") + 4
    last = first - 6 + int.from_bytes(whole[first - 6:first - 4], "big")   # where the segment ends
    for _ in range(100):
        harmed = bytearray(whole)
        harmed[rng.integers(first, last)] = rng.integers(256)
        path.write_bytes(harmed)
        one, other = by_both(path, monkeypatch)
        assert torch.equal(one, other)


@pytest.mark.parametrize("keep", [0, 2, 100, .5, .99])
def test_a_file_cut_short_is_refused_by_both(tmp_path, monkeypatch, keep):
    path = tmp_path/"a.jpg"
    Image.fromarray(picture(0, 60, 80)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(keep*len(whole) if 0 < keep < 1 else keep)])
    for decoder in (streaming.jpeg_decoder, lambda: None):
        monkeypatch.setattr(streaming, "jpeg_decoder", decoder)
        assert "a.jpg cannot be decoded: " in refused(streaming.decode_bytes, path, streaming.read_bytes(path))


def test_decoding_warns_of_nothing(tmp_path, recwarn):
    "torchvision's own functions, which it gives up, would."
    path = tmp_path/"a.jpg"
    Image.fromarray(picture(0, 20, 30)).save(path)
    streaming.decode_bytes(path, streaming.read_bytes(path))
    assert not recwarn.list


@pytest.mark.slow
def test_it_works_where_torchcodec_cannot_be_imported(tmp_path):
    path = tmp_path/"a.jpg"
    Image.fromarray(picture(0, 20, 30)).save(path)
    code = f"""
import sys
sys.modules["torchcodec"] = None
from mixsupcon.lab import streaming
print(streaming.jpeg_decoder(), streaming.decode_bytes({str(path)!r}, streaming.read_bytes({str(path)!r})).shape)
"""
    done = subprocess.run([*WARM, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "None torch.Size([3, 20, 30])", done.stderr
