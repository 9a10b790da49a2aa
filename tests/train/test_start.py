"""What a run reads of the one it goes on from."""

import json

from h2g.train.settings import Settings
from h2g.train.start import config_of


def test_the_config_of_a_finished_run_is_read_with_its_tuples(tmp_path):
  """JSON has lists alone, which the trainer's settings refuse."""
  train = {"rates": [["^backbone/", 0.1]], "steps": 3}
  (tmp_path / "config.json").write_text(json.dumps({"train": train, "sharding_rules": []}))
  settings = Settings.from_config(config_of(tmp_path))
  assert settings.rates == (("^backbone/", 0.1),) and settings.steps == 3
