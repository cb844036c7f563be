"""The replica farm: molecular dynamics from many structures, on many ranks, through whatever happens to them.

`stage` is what the pipeline calls. `plan` says which replicas there are; `dispatcher` decides who runs which, and keeps the
`ledger`; `scheduler` carries questions and answers between workers and dispatcher (one process, pipes, MPI); `leases` let
several jobs share a farm. A worker knows its `job` and runs `replica`: a `pack` at once, its `protocol` cut into segments, by
`copies` of one engine or the other, in `boxes` of water where asked for, measured by `observables`, written to a growing
`trajectory`.
"""
