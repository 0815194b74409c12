# One image for every service and command: `docker run … devmesh rest-api`, `… migrate`, `… doctor`.
# What it holds is what the locked files name, hash by hash; nothing is built or fetched beside them.

FROM python:3.13-slim-bookworm AS build
WORKDIR /build
# Without pip of its own: the final stage then has no means to install anything into it.
RUN python -m venv --without-pip /opt/devmesh
COPY requirements.txt requirements-build.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement requirements-build.txt \
    && pip --python /opt/devmesh/bin/python install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --require-hashes --requirement requirements.txt
COPY pyproject.toml LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/devmesh/bin/python install --no-cache-dir --disable-pip-version-check --no-deps --no-index dist/*.whl

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="DevMesh" \
      org.opencontainers.image.description="Lets a fleet of AI agents and workers get work done together" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 devmesh \
    && useradd --system --uid 10001 --gid devmesh --home-dir /var/lib/devmesh --create-home --shell /usr/sbin/nologin devmesh
COPY --from=build /opt/devmesh /opt/devmesh
# Everything needed is in the image and nothing is written there: it also runs on a read-only root file system.
ENV PATH=/opt/devmesh/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DEVMESH_HOST=0.0.0.0
WORKDIR /var/lib/devmesh
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
# mcp-server, rest-api, worker
EXPOSE 8080 8081 8088
STOPSIGNAL SIGTERM
# Asks whichever service this container runs; a service's own start may take until the database is there.
HEALTHCHECK --interval=15s --timeout=8s --start-period=150s --retries=3 \
    CMD ["sh", "-c", "exec devmesh \"$(tr '\\0' '\\n' < /proc/1/cmdline | grep -xE 'rest-api|mcp-server|worker')\" --health-check"]
ENTRYPOINT ["devmesh"]
CMD ["rest-api"]
