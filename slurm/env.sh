# What NCCL and the CPU libraries need to know of a cluster; sourced by every job (train.sbatch; the
# `environment_file` of configs/cluster/*.yaml). Settings that depend on the site stand commented out: switch one on when its reason applies, not before.

# One thread per reader process: eight tasks on a node would otherwise start eight times as many threads as there are cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# NCCL prints a line when it gives up on a connection, and says nothing else.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# An error in a collective ends the process instead of leaving the others waiting for hours. It is PyTorch's default (1);
# it stands here so that a site's profile cannot switch it off unnoticed.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1

# Which network interface NCCL and gloo meet on. Needed where compute nodes have several and the first is not routed between
# nodes (the job hangs at its start, or says "connection refused"). `ip -brief address` on a compute node lists them.
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=ib0

# Which InfiniBand adapters carry the gradients. Needed where a node has further ones for storage (slow steps on several
# nodes, fast ones on one). `ibstat -l` lists them.
# export NCCL_IB_HCA=mlx5_0,mlx5_1

# No InfiniBand at all: saves the search for it, and its warnings.
# export NCCL_IB_DISABLE=1

# Compute nodes without internet: take encoders from a folder that was filled on a login node, and never ask the hub.
# export HF_HOME=/path/on/shared/storage/huggingface
# export HF_HUB_OFFLINE=1
