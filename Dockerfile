# The service as one image: `docker run -p 8000:8000 -v rlvo:/data IMAGE`. CPU only; research use only.
# The root file system may be read-only (--read-only --tmpfs /tmp): all stored data and caches are in /data.

# The base image is a tag, so that a build gets its security updates. To pin it, pass its digest:
# --build-arg BASE=docker.io/library/python@sha256:...
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS build
RUN python -m venv /opt/rlvo
ENV PATH=/opt/rlvo/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The dependencies have separate layers, which stay valid when the code changes. Each package must be a wheel with a
# hash of a lock, so that no code of a package runs during the build.
COPY requirements.lock requirements-build.lock requirements-torch.lock ./
# --build-arg TORCH_INDEX=... selects an index with CPU wheels. Their hashes differ from those of PyPI, so that build pins
# the version of torch and trusts the index for its bytes.
ARG TORCH_INDEX=
RUN if [ -z "$TORCH_INDEX" ]; then \
      pip install --quiet --no-deps --only-binary :all: --require-hashes --requirement requirements-torch.lock; \
    else \
      pip install --quiet --only-binary :all: --index-url "$TORCH_INDEX" "$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements-torch.lock)"; \
    fi
RUN pip install --quiet --no-deps --only-binary :all: --require-hashes --requirement requirements.lock
RUN pip install --quiet --no-deps --only-binary :all: --require-hashes --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY rlvo rlvo
COPY migrations migrations
COPY model_store model_store
RUN pip install --quiet --no-deps --no-build-isolation . \
 && pip uninstall --quiet --yes hatchling pluggy trove-classifiers pathspec tomlkit \
 && pip check

FROM ${BASE}
COPY --from=build /opt/rlvo /opt/rlvo
# The user of the service writes the files of the aliases, which are in the model store.
COPY --chown=10001:10001 model_store /opt/rlvo/model_store
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin rlvo \
 && install --directory --owner rlvo --group rlvo /data
ENV PATH=/opt/rlvo/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RLVO_DATA_DIR=/data \
    RLVO_MODEL_STORE=/opt/rlvo/model_store \
    RLVO_HOST=0.0.0.0 \
    NUMBA_CACHE_DIR=/data/cache/numba \
    MPLCONFIGDIR=/data/cache/matplotlib
USER rlvo
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
# API keys are required, because the service listens on all addresses: docker exec CONTAINER rlvo keys create NAME
CMD ["rlvo", "serve"]
