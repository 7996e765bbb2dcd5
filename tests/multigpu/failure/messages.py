"""Messages of the monitor about a failed rank, as regular expressions; format(rank=...) inserts the rank."""

TIMEOUT = 3                                      # heartbeat_timeout of the tests, in seconds

NAME = r"rank {rank} \(pid \d+ on [^)]+\)"
MESSAGES = {
    "died": NAME + " has died: it was killed, or has crashed; mpiexec may report the signal",
    "lost its loader": NAME + r": the loader \(pid \d+\) was killed by SIGKILL",
    "lost its loader and has no common state": NAME + r": the loader \(pid \d+\) was killed by SIGKILL.*",
    "silent": NAME + rf" has been silent for {TIMEOUT} s \(heartbeat_timeout\): it hangs, was stopped, or cannot "
              "be reached",
    "stalled": NAME + rf" has not done a step for {TIMEOUT} s, and is not waiting for another rank; "
               "if a step takes this long, increase heartbeat_timeout",
    "bug": NAME + ": ended by ZeroDivisionError: the step is wrong",
    "data": NAME + ": the data is wrong",
}
