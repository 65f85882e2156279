#!/usr/bin/env bash
# Run a command, whose first word is an interpreter, in an Apptainer image: what slurm/train.sbatch does on each node with
# `--site apptainer`. The interpreter is replaced by the image's. Apptainer hands on the environment and signals.
set -eu
shift
exec apptainer exec --nv --bind "$PWD" --pwd "$PWD" "${TRAINLAUNCH_IMAGE:?names the image, a .sif file}" \
    "${TRAINLAUNCH_CONTAINER_PYTHON:-python3}" "$@"
