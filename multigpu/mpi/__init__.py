"""Training as an MPI job: the communicator, the job, and the wrapper of elastic ranks."""
