#!/usr/bin/env bash
# Stops the cluster that up.sh started, with its jobs, and removes its state folder and its lines in /etc/hosts.
#
#   sudo slurm/local/down.sh [--state FOLDER]
#
# Installed packages stay.
set -euo pipefail
cd "$(dirname "$0")"
source common.sh
parse_arguments "$@"

[[ -d $state ]] || exit 0
[[ -e $state/munge || -e $state/slurm.conf ]] || fail "does not lie in $state, which holds something else"

export SLURM_CONF=$state/slurm.conf
if is_running slurmctld; then
    # Otherwise the tasks would go on without their slurmd.
    scancel --state=PENDING --quiet 2>/dev/null || true
    scancel --full --signal=KILL --quiet 2>/dev/null || true
    scancel --quiet 2>/dev/null || true
    for ((second = 0; second < 15; second++)); do
        [[ -n $(squeue --noheader 2>/dev/null) ]] || break
        sleep 1
    done
fi
for daemon in slurmd-metaser1 slurmd-metaser2 slurmctld slurmdbd mariadbd munged; do
    stop "$daemon"
done
# Not `sed --in-place`: where /etc/hosts is a mount of its own, it cannot be replaced, only rewritten.
if grep -q "$hosts_mark" /etc/hosts; then
    rest=$(grep -v "$hosts_mark" /etc/hosts)
    printf '%s\n' "$rest" >/etc/hosts
fi
rm -rf "$state"
