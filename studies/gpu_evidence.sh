#!/usr/bin/env bash
# Everything that only a GPU can show; see gpu_evidence.py. Takes the current Python environment, with the package
# installed in it. PYTHON names another interpreter.
set -euo pipefail
unset PYTHONSAFEPATH  # the scripts of this folder import each other
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_evidence.py" "$@"
