# Triton without an engine, for a pod or a machine in which the engine has a container of its own:
# docker build -f build/docker/triton.Dockerfile .
#
# Server, Python backend and the libraries that they are linked with come from NVIDIA's image; whether
# CUDA's and DCGM's are among these depends on NVIDIA's build. Of Triton, not below 25.08: it is the
# first with 2025's fixes of remote code execution in the Python backend and the HTTP front end. Both
# images are Ubuntu 24.04 with Python 3.12. The tag comes from NVIDIA's pages; the image was not pulled,
# and this file not built, where the project's tests run.
FROM nvcr.io/nvidia/tritonserver:26.07-py3 AS triton
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# glibc and the like belong to the base that runs them.
RUN mkdir /libraries \
    && ldd /opt/tritonserver/bin/tritonserver /opt/tritonserver/lib/*.so \
       /opt/tritonserver/backends/python/*.so /opt/tritonserver/backends/python/triton_python_backend_stub \
       | awk '$2 == "=>" && $3 ~ "^/" {print $3}' | sort -u \
       | grep -Ev '/(libc|libm|libdl|librt|libpthread|ld-linux-x86-64|libpython3[.0-9]*)[.]so' \
       | xargs -I '{}' cp --dereference '{}' /libraries/

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

FROM ubuntu:24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libpython3.12 python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nemotron \
    && python3 -m venv /opt/venv
COPY pyproject.toml /src/
RUN /opt/venv/bin/pip install --no-cache-dir 'uv>=0.9,<1' \
    && /opt/venv/bin/uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode \
       --requirements /src/pyproject.toml --extra server \
    && rm -r /src
COPY --from=triton /opt/tritonserver/bin /opt/tritonserver/bin
COPY --from=triton /opt/tritonserver/lib /opt/tritonserver/lib
COPY --from=triton /opt/tritonserver/backends/python /opt/tritonserver/backends/python
COPY --from=triton /opt/tritonserver/TRITON_VERSION /opt/tritonserver/TRITON_VERSION
COPY --from=triton /libraries /opt/tritonserver/libraries
# The list of what is in the image's environment (CycloneDX), by a tool that does not stay.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    /opt/venv/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
    && mkdir /opt/nemotron \
    && /opt/venv/bin/uv tool run --no-cache --from cyclonedx-bom==7.5.0 cyclonedx-py environment \
       --output-file /opt/nemotron/sbom.cdx.json /opt/venv/bin/python
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nemotron-triton, Triton without an engine" \
      org.opencontainers.image.description="NVIDIA's Triton server and Python backend with the models of nemotron-triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="ubuntu:24.04"
# The backend's stub runs the first python3 on PATH.
ENV PATH=/opt/venv/bin:$PATH \
    LD_LIBRARY_PATH=/opt/tritonserver/lib:/opt/tritonserver/libraries \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001 8002 8003 1424
HEALTHCHECK --interval=10s --timeout=5s --start-period=3600s --retries=6 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8003/health/ready', timeout=4)"]
ENTRYPOINT ["nemotron"]
CMD ["--help"]
