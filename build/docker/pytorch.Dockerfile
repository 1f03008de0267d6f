# The PyTorch lane: docker build -f build/docker/pytorch.Dockerfile .
#
# No Triton image with TensorRT-LLM 1.3 is in NVIDIA's compatibility matrix yet, so this one is made
# of two, as TensorRT-LLM's own build does: its release image, and Triton's server with the Python
# backend. 1.3 is a release candidate so far, and this lane needs rc26 or later. Of Triton, not below
# 25.08, as in tensorrt.Dockerfile. Both are Ubuntu 24.04 with Python 3.12. The tags come from
# NVIDIA's pages; the images were not pulled, and this file not built, where the project's tests run.
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

FROM nvcr.io/nvidia/tritonserver:26.07-py3 AS triton

FROM nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc26
COPY --from=triton /opt/tritonserver/bin /opt/tritonserver/bin
COPY --from=triton /opt/tritonserver/lib /opt/tritonserver/lib
COPY --from=triton /opt/tritonserver/backends/python /opt/tritonserver/backends/python
COPY --from=triton /opt/tritonserver/TRITON_VERSION /opt/tritonserver/TRITON_VERSION
COPY --from=triton /usr/lib/x86_64-linux-gnu/libdcgm.so.* /usr/lib/x86_64-linux-gnu/
# What the server is linked with and the release image may lack; sshd lets the leader's mpirun reach
# the other nodes, the shell is for that, and the library's launcher calls openssl.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libarchive13t64 libb64-0d libcurl4t64 libnuma1 libre2-10 \
       openssh-client openssh-server openssl \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /bin/bash nemotron
COPY pyproject.toml /src/
# What the image has stays as it is: its PyTorch and NumPy belong to its TensorRT-LLM.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python3 -m pip list --format=freeze --exclude pip --exclude setuptools > /tmp/image.txt \
    && python3 -m pip install --no-cache-dir --break-system-packages --constraint /tmp/image.txt 'uv>=0.9,<1' \
    && python3 -m uv pip install --system --break-system-packages --no-cache --compile-bytecode \
       --constraint /tmp/image.txt --requirements /src/pyproject.toml --extra server --extra calibrate --extra bench \
    && rm -r /tmp/image.txt /src
# The list of what is in the image's Python (CycloneDX), by a tool that does not stay.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir --break-system-packages --no-deps /wheels/*.whl \
    && mkdir /opt/nemotron \
    && python3 -m uv tool run --no-cache --from cyclonedx-bom==7.5.0 cyclonedx-py environment \
       --output-file /opt/nemotron/sbom.cdx.json "$(command -v python3)"
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nemotron-triton, PyTorch lane" \
      org.opencontainers.image.description="Nemotron-4-340B-Instruct on TensorRT-LLM's LLM API behind Triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc26"
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001 8002 8003 1424 2222
HEALTHCHECK --interval=10s --timeout=5s --start-period=3600s --retries=6 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8003/health/ready', timeout=4)"]
ENTRYPOINT ["nemotron"]
CMD ["--help"]
