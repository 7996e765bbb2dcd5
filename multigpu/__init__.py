"""Processes, device memory and communication around the training loop.

launcher       starts one worker per device, monitors and ends them; launcher_link is a worker's connection to it
worker         one rank of a training
loader         a process beside a worker that fills its input buffers
messages       messages as JSON; their decoders construct nothing else
communicator   messages between the workers of one host; rendezvous connects workers started by hand
mpi            the same over MPI; failure detects dead and hung ranks of an MPI job
rules          how workers train together; exchange has the strategies that average their arrays
device         buffers on a device, shared between processes
process        starting and ending processes, signals, exit status
"""
