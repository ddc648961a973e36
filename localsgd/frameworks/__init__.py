"""What transformers, Lightning and accelerate need besides the optimizer of ``localsgd.torch``.

Each framework has a file of its own, which is imported by name and alone imports the framework.
"""

from localsgd.frameworks.hiding import private_world

__all__ = [
    "private_world",
]
