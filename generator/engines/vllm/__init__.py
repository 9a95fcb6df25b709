"""The vLLM engine. Importing this package sets the environment that vLLM reads when it is imported or starts processes.

vLLM forks its engine core on CUDA by default. BLAKE3's thread pool does not survive a fork: the next digest hangs. So
its processes are always spawned, whatever the environment said before. The other variables are defaults only.
"""

import os

os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # bound, two engines on a machine share one core
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
