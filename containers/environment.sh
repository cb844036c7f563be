# shellcheck shell=sh
# The environment of both images.
export PATH=/opt/hpc-molgen/bin:/usr/local/bin:/usr/bin:/bin
export LC_ALL=C.UTF-8
# nothing of the host's Python; here `unset` would not unset it
export PYTHONPATH='' PYTHONHOME='' PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
# between the user namespaces of two ranks a process may not read the other's memory: MPICH would wait for ever
export MPIR_CVAR_CH4_CMA_ENABLE=0 UCX_POSIX_USE_PROC_LINK=n
