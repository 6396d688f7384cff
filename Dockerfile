# docker build -t adjourn .        Needs REDIS_URL and DATABASE_URL; docker-compose.yml runs it with both servers.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/adjourn
COPY requirements.lock ./
RUN /opt/adjourn/bin/pip install --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md ./
COPY app ./app
COPY migrations ./migrations
RUN /opt/adjourn/bin/pip install --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --home-dir /data adjourn \
    && install --directory --owner adjourn --mode 0750 /data
COPY --from=build /opt/adjourn /opt/adjourn
ENV PATH=/opt/adjourn/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 VAR_DIR=/data LOG_FORMAT=json
WORKDIR /data
USER adjourn
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["adjourn", "check", "api"]
ENTRYPOINT ["adjourn"]
CMD ["serve"]
