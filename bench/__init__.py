"""Measured comparisons: how fast DevMesh is, beside what its own SQL does under pgbench. Never timed assertions.

Each measure is one file and gives figures; `python -m bench` runs them and prints one table. Load generator, services and
PostgreSQL share the machine, so every figure says what all of them reach together.
"""
