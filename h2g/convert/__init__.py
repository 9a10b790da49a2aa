"""Published checkpoints into our parameter trees.

  tensors = read("vit.safetensors")                    {name: array}; nothing is ever unpickled
  params = fill(params, tensors, TABLE, source=path)   a table of names says what goes where
  params = timm_vit.load(path, params, grid=(14, 14))  both, for the vision transformers of timm

A table is a list of `Rule(pattern, path, transform)`; a new family of checkpoints is a new table.
"""

from h2g.convert.names import fill as fill
from h2g.convert.names import Rule as Rule
from h2g.convert.read import read as read
