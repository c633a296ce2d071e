#!/usr/bin/env bash
# Ends the Slurm that start.sh started, and every job in it; takes its folder away.
set -uo pipefail
folder=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/lmm-forget-slurm-$(id -un)}
export SLURM_CONF=$folder/slurm.conf
if [ -e "$SLURM_CONF" ]; then
  timeout 10 scancel --user="$(id -un)" >/dev/null 2>&1
  for _ in $(seq 20); do
    [ -z "$(timeout 10 squeue --noheader 2>/dev/null)" ] && break
    sleep 0.5
  done
fi
for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munge/pid"; do
  [ -e "$file" ] && kill "$(cat "$file")" 2>/dev/null
done
sleep 1
rm -rf "$folder"
