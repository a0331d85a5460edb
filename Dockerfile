# Two images:
#   docker build --target stream --tag karmalake .          every command; the optional packages are avro, postgresql, proto, s3
#   docker build --target dagster --tag karmalake-dagster . the same, with Dagster and the dashboard
# What runs in one, the command says (compose.yaml). The root may be read-only and the user any: a container writes to
# /data, a volume, and to /tmp. Compiled loops are cached on the volume, or in /tmp where there is none. A file of
# settings is mounted as /etc/karmalake/karmalake.toml.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_PYTHON=/opt/karmalake/bin/python
WORKDIR /src
RUN apt-get update && apt-get install --yes --no-install-recommends binutils \
    && python3 -m venv --without-pip /opt/karmalake

# Every package is the one that was locked, or the build ends: `make pins` writes the hashes. Symbols for debuggers, and
# parts that nothing here imports (Arrow Flight, a second zstd, the libraries' own tests, what only compilers, linkers and
# type checkers read), are a fifth of what they take.
COPY requirements-stream.txt ./
RUN pip install --require-hashes --requirement requirements-stream.txt \
    && cd /opt/karmalake/lib/python3*/site-packages \
    && rm -r pyarrow/include pyarrow/src pyarrow/libarrow*_flight* pyarrow/_flight* zstandard/_cffi* \
    && rm pyarrow/libarrow_python*.so pyarrow/libarrow_python*.so.*.* \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && find . -type f -regex '.*\.\(pyi\|pyx\|pxd\|pxi\|a\|c\|h\|hpp\)' -delete \
    && find . -name '*.so*' -not -path './*.libs/*' -exec strip --strip-unneeded {} +

COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY docs/operations.md docs/operations.md
COPY pipelines pipelines
COPY assets assets
COPY karmalake karmalake
# What built it goes, and what grpcio-tools has beside protoc: that imports neither.
RUN pip install --no-deps --no-build-isolation . \
    && pip uninstall --yes editables hatchling packaging pathspec pluggy tomlkit trove-classifiers grpcio setuptools

FROM ${BASE} AS stream
RUN apt-get update && apt-get install --yes --no-install-recommends libjemalloc2 tini && rm -rf /var/lib/apt/lists/* \
    && mkdir -m 1777 /data
COPY --from=build /opt/karmalake /opt/karmalake
# pipelines/ingest/malloc.py says what jemalloc is for.
ENV PATH=/opt/karmalake/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp LD_PRELOAD=libjemalloc.so.2 \
    KARMALAKE_DATA_DIR=/data/karmalake NUMBA_CACHE_DIR=/data/numba
WORKDIR /etc/karmalake
USER 1000:1000
# The first process of a container ignores signals that it does not handle, as a command does while it starts.
ENTRYPOINT ["tini", "--"]
CMD ["karmalake", "--help"]

FROM stream AS dagster
USER root
COPY requirements-dagster.txt dagster.yaml /dagster/
COPY compose.workspace.yaml /dagster/workspace.yaml
# Dagster's runs are in PostgreSQL, not in a folder; their logs are on a volume. A quarter of what it brings is used by
# nothing here: GitHub Copilot for marimo's editor (it needs Node.js), maps for debuggers of pages, the libraries' tests.
RUN pip --no-cache-dir --python /opt/karmalake/bin/python install --require-hashes \
        --requirement /dagster/requirements-dagster.txt \
    && cd /opt/karmalake/lib/python3*/site-packages \
    && rm -r marimo/_lsp \
    && find . -name '*.map' -delete \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && mkdir -m 1777 /dagster/storage \
    && printf '\nstorage:\n  postgres:\n    postgres_url:\n      env: DAGSTER_POSTGRES_URL\n' >> /dagster/dagster.yaml
ENV DAGSTER_HOME=/dagster
USER 1000:1000
