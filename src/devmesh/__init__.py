"""DevMesh: a fleet of agents and workers gets work done together without losing any of it."""

__version__ = "0.1.0"
