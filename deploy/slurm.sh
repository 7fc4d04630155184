#!/usr/bin/env bash
# A Ray cluster inside a Slurm allocation, and one command of ours on it: sbatch deploy/slurm.sh score --pool … --out …
# The first node is the head; it works too, since its CPUs are paid for. Checkout and data lie on a shared file system.
#SBATCH --job-name=lossight
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
# SIGTERM two minutes before the end: batches in flight are finished; the same sbatch goes on.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?run me with sbatch}"
[ "$#" -gt 0 ] || { echo "expected a command of lossight and its options, found none" >&2; exit 2; }
[ -x .venv/bin/lossight ] || { echo "expected .venv/bin/lossight in $PWD (make setup), found none" >&2; exit 2; }

# The same port number on a shared machine is somebody else's: one from the job's number.
port=$((20000 + SLURM_JOB_ID % 20000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{print $1}'):$port"
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 24 /dev/urandom | base64 | tr -dc 'a-zA-Z0-9')
export RAY_AUTH_TOKEN

ray_start=(.venv/bin/ray start --num-cpus="$SLURM_CPUS_ON_NODE" --disable-usage-stats --block)

await_nodes() { # $1: how many
  local count='import sys, ray; ray.init(sys.argv[1], log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))'
  for _ in $(seq 60); do
    kill -0 "$head_step" 2>/dev/null || break # Ray has said why
    [ "$(.venv/bin/python -c "$count" "$address" 2>/dev/null || echo 0)" -ge "$1" ] && return
    sleep 5
  done
  echo "expected $1 nodes at $address, found fewer" >&2
  exit 3
}

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
srun --nodes=1 --ntasks=1 --nodelist="$head" \
  "${ray_start[@]}" --head --node-ip-address="${address%:*}" --port="$port" --include-dashboard=false &
head_step=$!
await_nodes 1
if [ "$SLURM_NNODES" -gt 1 ]; then
  workers=$((SLURM_NNODES - 1))
  srun --nodes="$workers" --ntasks="$workers" --exclude="$head" "${ray_start[@]}" --address="$address" &
  await_nodes "$SLURM_NNODES"
fi

# In the batch step, so that --signal=B reaches it.
export RAY_ADDRESS="$address"
.venv/bin/lossight "$@" &
job=$!
trap 'kill -TERM "$job"' TERM
code=0
wait "$job" || code=$?
# A wait that the signal broke off has its code, not the job's.
if kill -0 "$job" 2>/dev/null; then code=0; wait "$job" || code=$?; fi
exit "$code"
