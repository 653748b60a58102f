"""Which number of workers is best: batch sizes × workers measured cell by cell, and what can be concluded from them."""

from ._analysis import Sample, analyse, sample_of
from ._cells import Plan, load, measure

__all__ = ["Plan", "Sample", "analyse", "load", "measure", "sample_of"]
