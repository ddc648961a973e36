"""Front doors: an algorithm of the literature in one line."""

from localsgd.methods.local_sgd import LocalSGD

__all__ = [
    "LocalSGD",
]
