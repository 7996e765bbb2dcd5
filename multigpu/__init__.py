"""Processes, device memory and communication: what lies around the training loop.

launch    starts a worker for each device, watches them, ends them all
worker    one training process                  control   its line to the launcher
meeting   where workers started by hand find each other
loader    the process beside a worker that fills its input buffers
device    where buffers lie, and how another process sees them
process   how a process is started, treats signals, and how its end is told
"""
