"""The demo: a fleet of real processes works through real files, one of them is killed, and nothing is lost.

An ordinary user of the wire: it knows the client and no other part of DevMesh. `files`, `measures`, `extracts`, `words` and
`comparison` are the work itself, pure and checked against `wc`; `agent` is a process that does it; `fleet`, `accident` and
`performance` are what happens to these processes; `story`, `screen`, `report` and `summary` are how it is told.
"""
