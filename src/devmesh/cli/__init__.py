"""The command line. Commands translate and print; what is done is done by a service, an operation or the store.

Help must come at once, so nothing that is slow to import is imported before a command needs it.
"""

from devmesh.cli.application import main

__all__ = ["main"]
