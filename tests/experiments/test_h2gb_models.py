"""Every model of the table trains; settings and constructors agree."""

import json

import jax
import numpy as np
import pytest

from configs import h2gb as config
from experiments.h2gb.experiment import model_factory
from experiments.h2gb.models import MODELS
from h2g.graph import view
from h2g.nn.pure import pure
from h2g.train.__main__ import main
from tests.models.graphs import random_graph

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


@pytest.mark.few("gcn", "hgt")
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"mlp"}))
def test_relations_may_share_message_rows_unless_the_model_reads_them(name):
  graph = view(random_graph().with_reverses(), config.VIEWS.get(name, ""))
  model = pure(model_factory(config.get_config(f"fast,model={name}").model, graph))
  params, rest = model.init(jax.random.key(0))
  module = model.bind(params, rest)
  visible = np.arange(graph.num_nodes["paper"]) % 2 == 0
  run = jax.jit(lambda graph: model.bind(params, rest)(graph, visible=visible))
  shared = graph.with_incoming(typed=False)
  if module.reads_relations:
    with pytest.raises(ValueError):
      run(shared)
  else:
    np.testing.assert_allclose(run(shared), run(graph.with_incoming()), atol=1e-5)
