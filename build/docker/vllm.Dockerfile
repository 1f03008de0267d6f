# The vLLM lane: docker build -f build/docker/vllm.Dockerfile .
#
# Triton's server with the Python backend, and beside it an environment with vLLM, whose wheels bring
# all of CUDA but the driver. vLLM is the version that the project's tests run, there on a CPU. Of
# Triton, not below 25.08, as in tensorrt.Dockerfile. The image is Ubuntu 24.04 with Python 3.12. The
# tag comes from NVIDIA's pages; the image was not pulled, and this file not built, where the
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

FROM nvcr.io/nvidia/tritonserver:26.07-py3
# sshd lets the leader's mpirun reach the other nodes; the shell is for that. vLLM compiles kernels
# when it starts, for which it needs a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libnuma1 python3-dev python3-venv \
       openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /bin/bash nemotron
COPY pyproject.toml /src/
# Two environments, because each of both needs its own NumPy. The profiles name the second one.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python3 -m pip list --format=freeze --exclude pip --exclude setuptools > /tmp/image.txt \
    && python3 -m pip install --no-cache-dir --break-system-packages --constraint /tmp/image.txt 'uv>=0.9,<1' \
    && python3 -m uv pip install --system --break-system-packages --no-cache --compile-bytecode \
       --constraint /tmp/image.txt \
       --requirements /src/pyproject.toml --extra server --extra calibrate --extra bench --extra mpi \
    && python3 -m venv /opt/vllm \
    && python3 -m uv pip install --python /opt/vllm/bin/python --no-cache --compile-bytecode \
       vllm==0.32.0 --requirements /src/pyproject.toml --extra engine \
    && rm -r /tmp/image.txt /src
# The lists of what is in both environments (CycloneDX), by a tool that does not stay.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir --break-system-packages --no-deps /wheels/*.whl \
    && /opt/vllm/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
    && mkdir /opt/nemotron \
    && python3 -m uv tool run --no-cache --from cyclonedx-bom==7.5.0 cyclonedx-py environment \
       --output-file /opt/nemotron/sbom.cdx.json "$(command -v python3)" \
    && python3 -m uv tool run --no-cache --from cyclonedx-bom==7.5.0 cyclonedx-py environment \
       --output-file /opt/nemotron/sbom-vllm.cdx.json /opt/vllm/bin/python
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nemotron-triton, vLLM lane" \
      org.opencontainers.image.description="Nemotron-4-340B-Instruct on vLLM behind Triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tritonserver:26.07-py3"
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
