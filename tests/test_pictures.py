"""Attention as pictures: what glows is what has weight."""

import io

import numpy as np
import pytest

from h2g import pictures
from h2g.errors import InputError


def test_the_overlay_glows_where_the_weight_is():
  weights = np.zeros((4, 4))
  weights[1, 2] = 0.3
  out = pictures.overlay(np.full((32, 32, 3), 200, np.uint8), weights)
  assert out.shape == (32, 32, 3) and out.min() >= 0 and out.max() <= 1
  np.testing.assert_allclose(out[-1, 0], 100 / 255)  # grey at half, no weight
  light = np.abs(out - 100 / 255).sum(-1)
  at = np.unravel_index(light.argmax(), light.shape)
  assert (at[0] // 8, at[1] // 8) == (1, 2)
  np.testing.assert_allclose(pictures.overlay(np.zeros((6, 6)), weights * 0), 0.0)


def test_stretching_keeps_the_centres_and_a_constant():
  weights = np.arange(6.0).reshape(2, 3)
  out = pictures.stretch(weights, (6, 9))
  np.testing.assert_allclose(out[1::3, 1::3], weights)  # centres of cells of 3 x 3
  np.testing.assert_allclose(pictures.stretch(np.full((2, 2), 0.7), (5, 3)), 0.7)


def test_a_row_of_panels_per_image():
  rng = np.random.default_rng(0)
  figure = pictures.attention_maps(
    rng.random((2, 12, 8)), rng.random((2, 3, 3, 2)), titles="abc", row_titles=["x", "y"]
  )
  assert len(figure.axes) == 2 * 4
  assert [axis.get_title() for axis in figure.axes[:4]] == ["", "a", "b", "c"]
  assert figure.axes[4].get_ylabel() == "y"
  content = io.BytesIO()
  figure.savefig(content, format="png")
  assert content.getvalue().startswith(b"\x89PNG")
  assert len(pictures.grid([[np.zeros((2, 2))], [np.zeros((2, 2, 3))] * 2]).axes) == 4


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: pictures.attention_maps(np.zeros((2, 4, 4)), np.zeros((3, 1, 2, 2))), "must be"),
    (lambda: pictures.overlay(np.zeros((4, 4)), np.full((2, 2), -1.0)), "numbers >= 0"),
    (lambda: pictures.overlay(np.zeros((4, 4, 2)), np.ones((2, 2))), "must be .H, W."),
    (lambda: pictures.grid([]), "needs a panel"),
    (lambda: pictures.grid([[np.zeros((2, 2))]], titles="ab"), "titles has 2 entries for 1"),
  ],
)
def test_what_cannot_be_drawn(call, message):
  with pytest.raises(InputError, match=message):
    call()
