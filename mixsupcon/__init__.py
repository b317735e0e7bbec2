"""Image mixing for contrastive learning, in notebooks that reproduce their papers.

The public names are imported when they are first used, so that `import mixsupcon` costs nothing:

    from mixsupcon import experiment, options
    result = experiment("mixsupcon", dataset="digits", epochs=5)
    result.numbers, result.figures, result.encoder
    options("moco_imix")    # what can be set, its range, its default and what it means
"""
import importlib

__version__ = "0.7.3"

_PUBLIC = dict(
    # an experiment
    configure="core.configure", options="core.configure", experiment="lab.experiment", Result="lab.experiment",
    save_figures="lab.experiment",
    # losses and mixing, for code of one's own
    supcon="core.losses", contrastive="core.losses", SupConLoss="core.models", mix="core.mixers",
    # own parts: plain dicts, and a function that adds to them
    METHODS="core.methods", MIXERS="core.mixers", DATASETS="lab.data", ENCODERS="core.models",
    register="lab.extend", load_plugin="lab.extend",
    # what every error of ours is
    Refusal="core.options")

__all__ = [*_PUBLIC]

TYPE_CHECKING = False   # as in typing, which takes time to import
if TYPE_CHECKING:
    from .core.configure import configure, options
    from .core.losses import contrastive, supcon
    from .core.methods import METHODS
    from .core.mixers import MIXERS, mix
    from .core.models import ENCODERS, SupConLoss
    from .core.options import Refusal
    from .lab.data import DATASETS
    from .lab.experiment import Result, experiment, save_figures
    from .lab.extend import load_plugin, register


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"mixsupcon.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'mixsupcon' has no attribute {name!r}")


def __dir__() -> list:
    return sorted([*globals(), *_PUBLIC])
