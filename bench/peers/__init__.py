"""Other queues, measured beside DevMesh on one PostgreSQL: `python -m bench.peers`, or `make bench-peers`."""
