"""Every model of the table trains; settings and constructors agree."""

import json

import pytest

from configs import h2gb as config
from experiments.h2gb.models import MODELS
from h2g.train.__main__ import main

STEPS = ("train.steps=10", "train.eval_every=5", "train.checkpoint_every=0", "num_seeds=2")


def trains(workdir, variant):
  overrides = [f"--config.{setting}" for setting in STEPS]
  path = f"--config=configs/h2gb.py:{variant}"
  assert main(["train", path, f"--workdir={workdir}", "--noprogress", *overrides]) == 0
  result = json.loads((workdir / "results.json").read_text())
  assert len(result["test"]) == 2 and all(0 <= score <= 1 for score in result["test"])
  return result


def test_the_table_and_the_settings_name_the_same_models():
  assert set(MODELS) == set(config.MODELS) == set(config.PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize(
  "variant", ["tiny,model=label_propagation,view=1hop", "tiny,model=h2gcn"], ids=["lp", "h2gcn"]
)
def test_models_without_parameters_or_with_their_own_graph_train(tmp_path, variant):
  trains(tmp_path / "run", variant)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains(tmp_path, model):
  trains(tmp_path / "run", f"tiny,model={model}")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["label_propagation", "sgc"])
@pytest.mark.parametrize("view", ["1hop", "2hop"])
def test_models_read_the_target_induced_graphs(tmp_path, model, view):
  trains(tmp_path / "run", f"tiny,model={model},view={view}")
