"""`nbdev_test` of one notebook, whose outputs are kept: python nbdev_outputs.py NOTEBOOK FILE

FILE becomes the notebook with what its cells have shown, as Jupyter shows it: nbdev's shell alone would run the cells
as a script, where a training shows no progress, and would keep an output beside the one that takes its place.
"""
import sys

import nbdev.test
import pandas
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from ipykernel.compiler import XCachingCompiler
from IPython.core import displaypub
from traitlets import Type


class Shell(CaptureShell):
    "A shell that is a notebook's for those who ask for its kernel, and writes the notebook after its last cell."
    kernel = None
    compiler_class = Type(XCachingCompiler)   # which names the files of cells as a kernel does

    def __init__(self, path):
        super().__init__(path, mpl_format="png")

    def run_all(self, nb, **how):
        for cell, whole in zip(nb.cells, read_nb(sys.argv[1]).cells):
            cell.source = whole.source   # with nbdev's directives, so that lines have their numbers
        super().run_all(nb, **how)
        write_nb(nb, sys.argv[2])


class Publisher(displaypub.CapturingDisplayPublisher):
    "What a cell displays; an output that is updated is replaced."
    def publish(self, data, metadata=None, source=None, *, transient=None, update=False):
        earlier = [output for output in self.outputs if update and output["transient"] == transient]
        super().publish(data, metadata, source, transient=transient, update=update)
        if earlier:
            earlier[0].update(self.outputs.pop())


if __name__ == "__main__":
    nbdev.test.CaptureShell, displaypub.CapturingDisplayPublisher = Shell, Publisher
    pandas.set_option("display.max_columns", 20)   # as it does itself where it finds a kernel
    nbdev.test.nbdev_test(path=sys.argv[1], n_workers=0)
