"""Lists of images and attributes, in small files of the exact format."""

import json

import numpy as np
import pytest

from h2g.data import attribute_lists
from h2g.errors import InputError

FILES = {
  "meta.json": json.dumps(
    {"ATTRIBUTES": ["skirt", "collar"], "ATTRIBUTES_NUM": {"skirt": 6, "collar": 5}}
  ),
  "filenames_train.txt": "Images/skirt/a.jpg\nImages/collar/b.jpg\nImages/collar/c.jpg\n",
  "label_train.txt": "0 0 5\n1 1 0 0 2\n2 1 4\n",
  "query_train.txt": "2 1 4\n",
}


def write(folder, **changes):
  for name, text in (FILES | changes).items():
    if text is not None:
      (folder / name).write_text(text)
  return folder


def test_the_lists_of_one_split(tmp_path):
  found = attribute_lists.load(write(tmp_path), "train")
  assert found.names == ("skirt", "collar") and found.sizes == (6, 5)
  assert found.paths[1] == tmp_path / "Images/collar/b.jpg"
  np.testing.assert_array_equal(found.labels, [[5, -1], [2, 0], [-1, 4]])
  asked = attribute_lists.load(tmp_path, "train", part="query")
  np.testing.assert_array_equal(asked.labels, [[-1, -1], [-1, -1], [-1, 4]])
  write(tmp_path, **{"meta.json": json.dumps({"FashionAI": json.loads(FILES["meta.json"])})})
  assert attribute_lists.load(tmp_path, "train", dataset="FashionAI").names == found.names


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("label_train.txt", None, "label_train.txt"),
    ("meta.json", None, "meta.json"),
    ("meta.json", "{}", "meta.json lacks ATTRIBUTES"),
    ("label_train.txt", "0 0 6\n", "line 1: value 6 of skirt, which has 6 values"),
    ("label_train.txt", "0 0 1\n0 2 1\n", "line 2: attribute 2 of 2 in meta.json"),
    ("label_train.txt", "3 0 1\n", "line 1: image 3 of 3 in filenames_train.txt"),
    ("label_train.txt", "0 0\n", "line 1: an image, then pairs"),
    ("label_train.txt", "0 x 1\n", "line 1: '0 x 1' is no row of integers"),
  ],
  ids=["no labels", "no meta", "empty meta", "value", "attribute", "image", "odd", "word"],
)
def test_what_cannot_be_used_is_named(tmp_path, name, text, message):
  with pytest.raises(InputError, match=message):
    attribute_lists.load(write(tmp_path, **{name: text}), "train")
