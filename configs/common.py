"""What every config shares: parsing of the variant, and the trainer's settings with their
defaults."""

from ml_collections import ConfigDict


def parse_variant(variant: str, *, names: tuple[str, ...], options: dict) -> tuple[str, dict]:
  """Splits `name,key=value,...` into the leading name and the options.

  Args:
    variant: what stands after the colon of `--config configs/x.py:VARIANT`; the name may be left
      out.
    names: allowed names; the first is the default.
    options: allowed keys with their defaults; a value takes its default's type.
  Returns:
    (name, {key: value}).
  Raises:
    ValueError: unknown name or key; the message lists what there is.
  """
  name, settings = names[0], dict(options)
  for position, part in enumerate(filter(None, (variant or "").split(","))):
    key, equals, value = part.partition("=")
    if equals and key in options:
      settings[key] = type(options[key])(value)
    elif not equals and position == 0 and part in names:
      name = part
    else:
      raise ValueError(
        f"unknown variant {part!r} in {variant!r}: first a name, one of {', '.join(names)}; then "
        f"options, of {', '.join(f'{key}=...' for key in options)}"
      )
  return name, settings


def require(option: str, value: str, known) -> None:
  """ValueError that lists the known values unless `value` is one of them."""
  if value not in known:
    raise ValueError(f"{option}={value} is unknown: choose from {', '.join(filter(None, known))}")


def transformer(**train) -> ConfigDict:
  """`trainer` with what the published vision transformers share: AdamW, weight decay, bfloat16."""
  shared = {"weight_decay": 0.05, "optimizer": "adamw", "compute_dtype": "bfloat16"}
  return trainer(log_every=50, **shared, **train)


def trainer(**train) -> ConfigDict:
  """Seeds, mesh and the `train` settings given; the trainer documents and defaults the others."""
  return ConfigDict(
    {
      "seed": 0,
      "num_seeds": 1,
      "train": train,
      "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
      "sharding_rules": (),
    }
  )
