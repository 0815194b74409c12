"""`python -m devmesh` is `devmesh`."""

from devmesh.cli import main

if __name__ == "__main__":
    main()
