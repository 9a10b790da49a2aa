"""Many models on many data sets, as one table: `python -m h2g.benchmark --help`.

grid.py says which runs there are, h2g.train.jobs runs them, table.py reads what came out, report.py
writes it down. A run is a command `python -m h2g.train` in a directory of its own.
"""

from h2g.benchmark.grid import Cell as Cell
from h2g.benchmark.grid import cells as cells
from h2g.benchmark.grid import Grid as Grid
from h2g.benchmark.table import collect as collect
from h2g.benchmark.table import Table as Table
