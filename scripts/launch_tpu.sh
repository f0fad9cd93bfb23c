#!/usr/bin/env bash
# One training stage on every host of a TPU slice; jax finds the other hosts by the TPU's metadata.
#
#   TPU=my-v5e-16 ZONE=us-west4-a scripts/launch_tpu.sh train-experts --run /mnt/RUN --config C.yaml
#
# RUN must lie on storage that all hosts see (a mounted bucket or Filestore). The package and its
# extra are installed on each host first: pip install "trinityx-jax[tpu]".
set -euo pipefail

if [[ $# -eq 0 || -z ${TPU:-} || -z ${ZONE:-} ]]; then
  echo "usage: TPU=name ZONE=zone scripts/launch_tpu.sh STAGE --run RUN [--config FILE]" >&2
  exit 2
fi
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="trinityx $(printf '%q ' "$@") --distributed"
