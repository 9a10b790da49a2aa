"""Build file of h2g: `pip install -e .`, extras [gpu], [tpu], [colab], [pyg], [ieeg], [dev]."""

import pathlib

from setuptools import find_packages
from setuptools import setup

ROOT = pathlib.Path(__file__).parent

PLOTS = ["matplotlib>=3.8"]
NOTEBOOKS = ["nbclient>=0.10", "nbformat>=5.9", "ipykernel>=6.29", "networkx>=3.2"]

setup(
  name="h2g",
  version="0.1.0",
  description="Attention on heterogeneous things, from graphs to signals, in JAX and Flax.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  author="The h2g authors",
  license="Apache-2.0",
  keywords="jax flax attention heterogeneous graph transformer heterophily pallas",
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  packages=find_packages(include=["h2g", "h2g.*"]),
  package_data={"h2g": ["py.typed"], "h2g.data": ["celegans_files/*"]},
  python_requires=">=3.11",
  install_requires=[
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "grain>=0.2.12",
    "jraph>=0.0.6.dev0",
    "ml-collections>=1.0",
    "absl-py>=2.1",
    "numpy>=1.26",
    "safetensors>=0.5",
    "tensorboardX>=2.6.2",
    "tqdm>=4.66",
    "pillow>=10",
    *PLOTS,
  ],
  extras_require={
    "gpu": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "colab": NOTEBOOKS,
    "pyg": ["torch>=2.4", "torch-geometric>=2.6"],  # tests compare operators with it where present
    "ieeg": ["h5py>=3.10", "hdf5plugin>=4"],  # SWEC-iEEG
    "dev": [
      *NOTEBOOKS,
      "pytest>=8",
      "pytest-timeout>=2.3",
      "pytest-xdist>=3.5",
      "hypothesis>=6.100",
      "ruff>=0.6",
      "scipy>=1.11",
      "h5py>=3.10",
      "scikit-learn>=1.4",  # its digits are data of experiments
    ],
  },
)
