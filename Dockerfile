# karmalake and Dagster in one image: `docker build -t karmalake .`. What runs in it, the command says (compose.yaml).
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 \
    KARMALAKE_DATA_DIR=/data DAGSTER_HOME=/dagster NUMBA_CACHE_DIR=/home/karmalake/numba

WORKDIR /app
COPY requirements.txt pyproject.toml README.md LICENSE dagster.yaml ./
COPY pipelines pipelines
COPY assets assets

# The pinned versions, as constraints; the packages for tests and documentation stay out.
RUN sed -e '/--hash/d' -e 's/ \\$//' -e 's/\[[^]]*\]//' requirements.txt > constraints.txt \
    && pip install --constraint constraints.txt '.[avro,dashboard,postgresql]' dagster-k8s==0.29.27 dagster-postgres==0.29.27

# Not root; Dagster's runs in PostgreSQL, not in a folder.
RUN useradd --create-home --uid 1000 karmalake \
    && mkdir -p /data /dagster/storage \
    && cp dagster.yaml /dagster/ \
    && printf '\nstorage:\n  postgres:\n    postgres_url:\n      env: DAGSTER_POSTGRES_URL\n' >> /dagster/dagster.yaml \
    && chown -R karmalake /data /dagster
USER karmalake
CMD ["karmalake", "--help"]
