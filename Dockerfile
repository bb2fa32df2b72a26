# syntax=docker/dockerfile:1
# Serving image: no torch, no compiler, no root. The bundled demo model is inside; mount another bundle to serve that.
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/pixart
# The packages first, from the metadata alone: this layer is rebuilt only when pyproject.toml changes.
COPY pyproject.toml README.md LICENSE ./
RUN /opt/pixart/bin/pip install .
COPY engine engine
COPY models models
COPY server server
RUN /opt/pixart/bin/pip install --no-deps --force-reinstall .

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="pixart-delta-server" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin pixart
COPY --from=build /opt/pixart /opt/pixart
ENV PATH=/opt/pixart/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["pixart"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
