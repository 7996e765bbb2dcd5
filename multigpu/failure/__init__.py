"""Detection of failed ranks in an MPI job: heartbeats and the process that monitors them."""
