#!/usr/bin/env bash
# One training stage on several GPU nodes of a Slurm cluster; jax finds the job by Slurm's variables.
#
#   sbatch --nodes=4 scripts/launch_slurm.sh train-experts --run RUN --config CONFIG.yaml
#
# RUN must lie on a file system that all nodes share. With the nodes' fast links inside and the
# network between them, set mesh.slices to the number of nodes in CONFIG.yaml. Slurm sends SIGTERM
# two minutes before the limit: the run saves a checkpoint, and the same command goes on from there.
#SBATCH --job-name=trinityx
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch scripts/launch_slurm.sh STAGE --run RUN [--config FILE]" >&2
  exit 2
fi
exec srun --kill-on-bad-exit=1 trinityx "$@" --distributed
