#!/usr/bin/env bash
# Everything that only a GPU can show; see gpu_evidence.py. Takes the current Python environment, with the package
# installed in it. PYTHON names another interpreter.
set -euo pipefail
# The scripts of this folder import each other. Nothing is imported from the current folder, where the sources of the
# package may lie: the installed package is what counts.
here="$(cd "$(dirname "$0")" && pwd)"
export PYTHONSAFEPATH=1 PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$here/gpu_evidence.py" "$@"
