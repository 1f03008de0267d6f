# The CPU lane, the gateway, the client and the download: docker build -f build/docker/cpu.Dockerfile .
#
# Python 3.12 is the newest that Triton's wheel has a backend for, and this image has it as a shared
# library, which that backend needs. The packages come from the lock, in a layer of their own, so that
# a change of the project's code builds and pulls only the project.
FROM python:3.12-slim-bookworm AS packages
COPY locks/demo.txt /locks/demo.txt
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes --requirement /locks/demo.txt

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY convert convert
COPY build build
COPY engine engine
COPY serve serve
COPY gateway gateway
COPY client client
COPY data data
COPY evaluate evaluate
COPY bench/nemotron_bench bench/nemotron_bench
COPY model_repository model_repository
COPY tests/tiny_nemotron/tiny_nemotron.nemo tests/tiny_nemotron/tiny_nemotron.nemo
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nemotron
COPY --from=packages /opt/venv /opt/venv
COPY tests/tiny_nemotron/tiny_nemotron.nemo /opt/nemotron/tiny_nemotron.nemo
# The list of what is in the image's environment (CycloneDX), by a tool that does not stay.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    /opt/venv/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
    && python -m venv /opt/cyclonedx \
    && /opt/cyclonedx/bin/python -m pip install --no-cache-dir cyclonedx-bom==7.5.0 \
    && /opt/cyclonedx/bin/python -m cyclonedx_py environment --output-file /opt/nemotron/sbom.cdx.json \
       /opt/venv/bin/python \
    && rm -r /opt/cyclonedx
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nemotron-triton, CPU lane and gateway" \
      org.opencontainers.image.description="Nemotron-4 on OpenVINO behind Triton, and its OpenAI-compatible gateway" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12-slim-bookworm"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001 8002 8003 1424
# Of `nemotron serve`; where another verb runs, switch it off with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8003/health/ready', timeout=4)"]
ENTRYPOINT ["nemotron"]
CMD ["--help"]
