# karmalake and Dagster in one image: `docker build -t karmalake .`. What runs in it, the command says (compose.yaml).
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 \
    KARMALAKE_DATA_DIR=/data DAGSTER_HOME=/dagster NUMBA_CACHE_DIR=/home/karmalake/numba

WORKDIR /app
COPY requirements-image.txt pyproject.toml hatch_build.py README.md LICENSE dagster.yaml ./
COPY docs/operations.md docs/operations.md
COPY pipelines pipelines
COPY assets assets
COPY karmalake karmalake

# Every package is the one that was locked, or the build ends: `make pins` writes the hashes of both files.
RUN pip install --require-hashes --requirement requirements-image.txt \
    && pip install --no-deps --no-build-isolation .

# Not root; Dagster's runs in PostgreSQL, not in a folder.
RUN useradd --create-home --uid 1000 karmalake \
    && mkdir -p /data /dagster/storage \
    && cp dagster.yaml /dagster/ \
    && printf '\nstorage:\n  postgres:\n    postgres_url:\n      env: DAGSTER_POSTGRES_URL\n' >> /dagster/dagster.yaml \
    && chown -R karmalake /data /dagster
USER karmalake
CMD ["karmalake", "--help"]
