"""Image mixing for contrastive learning, in notebooks that reproduce their papers.

The public names are imported when they are first used, so that `import mixsupcon` costs nothing.
"""
import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_PUBLIC = dict(
    supcon="core.losses", contrastive="core.losses", mix="core.mixers", MIXERS="core.mixers",
    METHODS="core.methods", register="core.methods", configure="core.configure", list_options="core.configure",
    experiment="lab.experiment", Refusal="core.options")

__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from .core.configure import configure, list_options
    from .core.losses import contrastive, supcon
    from .core.methods import METHODS, register
    from .core.mixers import MIXERS, mix
    from .core.options import Refusal
    from .lab.experiment import experiment


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"mixsupcon.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'mixsupcon' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_PUBLIC])
