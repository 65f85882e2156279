#!/usr/bin/env bash
# Run a command, whose first word is an interpreter, in an enroot image: what slurm/train.sbatch does on each node with
# `--site enroot`. The interpreter is replaced by the image's. enroot hands on the variables that are named here.
set -eu
shift
variables=()
while IFS= read -r name; do
    case $name in
        TRAINLAUNCH_* | SLURM_* | NCCL_* | GLOO_* | PYTHON* | CUDA_* | NVIDIA_* | WANDB_* | OMP_NUM_THREADS | AWS_* | HF_* | TORCH*)
            variables+=(--env "$name") ;;
    esac
done < <(compgen -e)
# The folder of the run is not the image's: it is entered inside.
# shellcheck disable=SC2016 # expanded there
exec enroot start "${variables[@]}" --mount "$PWD:$PWD" "${TRAINLAUNCH_IMAGE:?names the image, a .sqsh file}" \
    bash -c 'cd "$1" && shift && exec "$@"' bash "$PWD" "${TRAINLAUNCH_CONTAINER_PYTHON:-python3}" "$@"
