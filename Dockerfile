# syntax=docker/dockerfile:1
# Serving images, without root. `cpu` (the default) is without PyTorch and serves the bundled demo model; mount another bundle
# to serve that. `gpu` serves the bundle at /bundle, whose TensorRT engines it compiles too, since they are made for one
# kind of GPU (docs/operations.md, "Deploying"); it has PyTorch for that, and to manage the GPU's memory.
#   docker build --target cpu -t pixart-delta-server:0.1.0-cpu .
#   docker build --target gpu -t pixart-delta-server:0.1.0-gpu .
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/pixart
# The packages first, from the metadata alone: this layer is rebuilt only when pyproject.toml changes.
COPY pyproject.toml README.md LICENSE ./
RUN /opt/pixart/bin/pip install '.[filter,otel]'
COPY engine engine
COPY models models
COPY server server
RUN /opt/pixart/bin/pip install --no-deps --force-reinstall .

FROM build AS build-gpu
RUN /opt/pixart/bin/pip install '.[filter,otel,compile,tensorrt]'

FROM python:3.12-slim-bookworm AS base
LABEL org.opencontainers.image.title="pixart-delta-server" \
      org.opencontainers.image.licenses="Apache-2.0"
# The cache's folder exists in the image, so that a volume mounted over it belongs to the user.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin pixart \
 && install --directory --owner 10001 /cache
ENV PATH=/opt/pixart/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PIXART_HOST=0.0.0.0 PIXART_PORT=8000 PIXART_CACHE=/cache
USER 10001
WORKDIR /tmp
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["pixart"]
CMD ["serve"]

FROM base AS gpu
COPY --from=build-gpu /opt/pixart /opt/pixart
ENV PIXART_BACKEND=tensorrt_rtx PIXART_BUNDLE=/bundle NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last one is what a plain `docker build` makes.
FROM base AS cpu
COPY --from=build /opt/pixart /opt/pixart
