"""The data sets that a config may name with `dataset=NAME`: their options, and what suits them."""

# Options with their defaults; a value given in a variant takes the default's type.
OPTIONS = {
  "celegans": {"label": "role", "molecules": "nodes"},
  "airports": {"graph": "brazil"},
  "flavor": {},
  "heco_acm": {"per_class": 20},
  "heco_aminer": {"per_class": 20},
  "heco_freebase": {"per_class": 20},
  "heterophilous_npz": {"graph": "chameleon_filtered", "fold": 0, "words": "features"},
  "imdb_nshe": {},
  "larval_connectome": {},
  "liar": {"label": "six", "words": 256},
  "movielens": {"label": "gender", "knowledge": False},
  "twitch": {"graph": "ENGB", "vocabulary": False},
  "worldcup": {},
  "yelpchi_reviews": {"label": "review"},
}
# What differs in `config.data` from a config's defaults.
SETTINGS = {
  "celegans": {"symmetric": ("electrical",)},
  "flavor": {"symmetric": ("backbone",)},
  "yelpchi_reviews": {"similar": 0},  # every review is like hundreds of others
}
METRICS = {"yelpchi_reviews": "macro_f1"}  # 87 % are genuine; accuracy elsewhere
# Every option of a variant: "" leaves it at the data set's default.
NAMES = tuple(sorted({option for options in OPTIONS.values() for option in options}))


def options_of(dataset: str, given: dict) -> dict:
  """The data set's options, with those that a variant gives.

  Args:
    dataset: one of OPTIONS.
    given: {option: text}, "" where the variant does not say.
  Raises:
    ValueError: the data set has no such option, or the text is no value of its type.
  """
  if dataset not in OPTIONS:
    raise ValueError(f"dataset={dataset} is unknown: choose from {', '.join(OPTIONS)}")
  options = dict(OPTIONS[dataset])
  for name, text in given.items():
    if text == "":
      continue
    if name not in options:
      known = ", ".join(options) or "none"
      raise ValueError(f"dataset={dataset} has no option {name}={text}: its options are {known}")
    kind = type(options[name])
    if kind is bool and text.lower() not in ("true", "false"):
      raise ValueError(f"{name}={text} must be true or false")
    try:
      options[name] = text.lower() == "true" if kind is bool else kind(text)
    except ValueError as error:
      raise ValueError(f"{name}={text} must be of type {kind.__name__}") from error
  return options
