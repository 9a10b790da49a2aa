"""One config with many settings, on a grid or at random: `python -m h2g.sweep --help`.

axes.py says which points there are, h2g.train.jobs runs them, table.py reads what came out and
writes it down, clusters.py writes job lists. A point is a command `python -m h2g.train` in a
directory of its own, named after its settings: a larger sweep finds the points of a smaller one.
"""

from h2g.sweep.axes import Axis as Axis
from h2g.sweep.axes import points as points
