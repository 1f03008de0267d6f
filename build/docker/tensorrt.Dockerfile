# The TensorRT lane: docker build -f build/docker/tensorrt.Dockerfile .
#
# TensorRT-LLM 1.2 is the last line with engines. 26.07 is the newest of NVIDIA's Triton images whose
# entry in the compatibility matrix has it (1.2.1); 26.03 is the first (1.2.0). Do not go below 25.08:
# it is the first with 2025's fixes of remote code execution in Triton's Python backend and HTTP front
# end. The tag comes from that matrix; the image was not pulled, and this file not built, where the
# project's tests run.
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

FROM nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
# sshd lets the leader's mpirun reach the other nodes; the shell is for that. The library's launcher
# calls openssl.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client openssh-server openssl \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /bin/bash nemotron
COPY pyproject.toml /src/
# What the image has stays as it is: its PyTorch, NumPy and MPI belong to its TensorRT-LLM.
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
LABEL org.opencontainers.image.title="nemotron-triton, TensorRT lane" \
      org.opencontainers.image.description="Nemotron-4-340B-Instruct on TensorRT-LLM engines behind Triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
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
