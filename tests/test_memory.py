"A step's tensors go when the step is over, without waiting for the garbage collector."
import gc

import pytest
import torch
from mixsupcon.core.methods import METHODS, loss_of
from mixsupcon.core.options import stream
from small import CLASSES, build, draw, fill_clusters, small


def image_batches():
    "All batches of images that are alive and younger than the last `gc.freeze()`."
    return [v for v in gc.get_objects() if issubclass(type(v), torch.Tensor) and v.shape[1:] == (3, 8, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_batch_stays_alive(method):
    "After four steps no view and no feature of an earlier one is left."
    cfg = small(method)
    net = fill_clusters(build(cfg))
    gc.disable()
    gc.freeze()
    try:
        for step in range(4):
            views, y = draw(cfg, seed=step)
            rows = torch.arange(len(y))
            loss_of(cfg, net, views, y, CLASSES, stream(step, "mix"), rows=rows).loss.backward()
            del views
        assert not image_batches()
    finally:
        gc.unfreeze()
        gc.enable()
