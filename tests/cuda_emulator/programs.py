"""Programs on the emulated GPUs, for tests/test_cuda_emulator.py.

    python -m tests.cuda_emulator.programs NAME [ARGUMENTS]

Each program is a function. Its return value is printed as one line of JSON. Programs that interact with the test or
with another process first exchange lines of JSON with it.
"""

import ctypes
import json
import os
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pycuda.driver as cuda

from multigpu.device.cuda import KERNEL, PARAMETERS
from tests.cuda_emulator import pending

N = 1024                                         # number of floats in a buffer
NEW = np.full(4, 0xA5, np.uint8).view(np.float32)[0].item()      # content of uninitialised memory
NON_BLOCKING = 1                                 # CU_STREAM_NON_BLOCKING: no synchronisation with the default stream
PTX = KERNEL.read_bytes() + b"\0"
OTHER_PTX = b".version 4.3\n.target sm_50\n.visible .entry other() { ret; }\0"
driver = ctypes.CDLL("libcuda.so.1")             # for calls that PyCUDA does not offer or whose errors it hides


def write(value):
    """Print `value` to the test as one line of JSON."""
    print(json.dumps(value), flush=True)


def read():
    """Read one line of JSON from the test."""
    return json.loads(sys.stdin.readline())


@contextmanager
def device(number=0):
    """Make the primary context of a device current."""
    cuda.init()
    context = cuda.Device(number).retain_primary_context()
    context.push()
    try:
        yield context
    finally:
        cuda.Context.pop()
        context.detach()
        driver.cuCtxPopCurrent_v2(None)          # PyCUDA pushes the context to release it and does not pop it


def error_of(call, *arguments):
    """Return the driver's error message for a call, or "no error"."""
    try:
        call(*arguments)
    except cuda.Error as error:
        return str(error).split(": ")[1]
    return "no error"


def ones(value=1.0):
    """Return N floats in pageable memory, all `value`."""
    return np.full(N, value, np.float32)


def memory(value=None):
    """Return a device buffer of N floats, uninitialised or all `value`."""
    buffer = cuda.mem_alloc(4 * N)
    if value is not None:
        cuda.memcpy_htod(buffer, ones(value))
        cuda.Context.synchronize()
    return buffer


def glance(buffer):
    """Return the current last float of a buffer, read in a stream that does not wait for other streams."""
    host = ones()
    cuda.memcpy_dtoh_async(host, buffer, cuda.Stream(NON_BLOCKING))
    return host[-1].item()


def mean_kernel():
    """Return the kernel of multigpu/device/mean.ptx."""
    return get_kernel(PTX, "mean").prepare(PARAMETERS)


def mean(function, destination, sources, n=N, stream=None):
    """Launch the mean kernel."""
    pointers = [int(source) for source in sources] + [0] * (16 - len(sources))
    function.prepared_async_call((1, 1), (256, 1, 1), stream, int(destination), *pointers, n, len(sources))


# ---- deferred execution ----


def late():
    """For each deferred operation: value and number of pending operations before and after a synchronise."""
    seen = {}
    with device() as context:
        two, locked = memory(2.0), cuda.pagelocked_empty(N, np.float32)
        locked[:] = 2.0
        kernel = mean_kernel()
        operations = {
            "pageable to device": lambda to: cuda.memcpy_htod(to, ones(2.0)),
            "pageable to device, async": lambda to: cuda.memcpy_htod_async(to, ones(2.0)),
            "page-locked to device, async": lambda to: cuda.memcpy_htod_async(to, locked),
            "device to device": lambda to: cuda.memcpy_dtod(to, two, 4 * N),
            "device to device, async": lambda to: cuda.memcpy_dtod_async(to, two, 4 * N),
            "peer": lambda to: cuda.memcpy_peer(to, two, 4 * N, context, context),
            "peer, async": lambda to: cuda.memcpy_peer_async(to, two, 4 * N, context, context),
            "fill": lambda to: cuda.memset_d32(to, 0x40000000, N),
            "kernel": lambda to: mean(kernel, to, [two]),
        }
        for name, operation in operations.items():
            buffer = memory()
            operation(buffer)
            before, count = glance(buffer), pending()
            cuda.Context.synchronize()
            seen[name] = [before, count, glance(buffer), pending()]
    return {"new": NEW, "seen": seen}


def prompt():
    """Check copies that are complete on return: page-locked memory to the device, and device to host."""
    with device():
        locked = cuda.pagelocked_empty(N, np.float32)
        locked[:] = 2.0
        buffer, copy, host = memory(), memory(), ones()
        cuda.memcpy_htod(buffer, locked)
        uploaded = glance(buffer), pending()
        cuda.memcpy_dtod(copy, buffer, 4 * N)
        cuda.memcpy_dtoh(host, copy)             # waits for the previous copy
        return {"uploaded": uploaded, "downloaded": [host[-1].item(), pending()]}


def taken_over():
    """Which bytes arrive if host memory changes after the call: pageable, page-locked, registered."""
    with device():
        results = []
        registered = ones()                      # registered through the driver: PyCUDA's function crashes with NumPy 2
        address = ctypes.c_void_p(registered.ctypes.data)
        statuses = [driver.cuMemHostRegister_v2(address, ctypes.c_size_t(4 * N), 0) for _ in range(2)]
        for host in (ones(), cuda.pagelocked_empty(N, np.float32), registered):
            host[:] = 2.0
            buffer = memory()
            cuda.memcpy_htod_async(buffer, host)
            host[:] = 3.0
            cuda.Context.synchronize()
            results.append(glance(buffer))
        statuses += [driver.cuMemHostUnregister(address) for _ in range(2)]
        late, host = cuda.pagelocked_empty(N, np.float32), ones()
        late[:] = 0.0
        cuda.memcpy_dtoh_async(late, buffer)
        cuda.memcpy_dtoh_async(host, buffer)     # waits; the previous copy is earlier in the stream and thus complete
        before = pending(), late[-1].item(), host[-1].item()
        return {"taken": results, "registered": statuses, "to the host": before}


def streams():
    """Number of copies pending after each kind of wait: on a stream, an event, and the default stream."""
    left = {}
    with device():
        source, buffers = memory(2.0), [memory() for _ in range(4)]

        def copies(*order):
            for buffer, stream in zip(buffers, order, strict=False):
                cuda.memcpy_dtod_async(buffer, source, 4 * N, stream)

        one, two, apart = cuda.Stream(), cuda.Stream(), cuda.Stream(NON_BLOCKING)
        copies(one, two, apart)
        one.synchronize()
        left["one of three streams"] = pending()
        cuda.memcpy_dtoh(ones(), source)
        left["default stream"] = pending()       # does not wait for the non-blocking stream
        cuda.Context.synchronize()
        left["context"] = pending()

        copies(one, None, two)
        two.synchronize()                        # waits for the default stream, which waits for the first stream
        left["blocking stream"] = pending()

        event = cuda.Event()
        copies(one, one)
        event.record(one)
        copies(one)
        event.synchronize()
        left["event"] = pending()
        cuda.Context.synchronize()

        copies(apart)
        event.record(apart)
        one.wait_for_event(event)
        copies(one, two)
        one.synchronize()
        left["event of another stream"] = pending()
        cuda.Context.synchronize()

        copies(one, one)
        event.record(one)
        left["queries"] = [[event.query(), pending()] for _ in range(4)]
        left["query of an idle stream"] = one.is_done()
    return left


def chain():
    """Chain means across three streams that are ordered by events; return pending, result and expected value."""
    with device():
        kernel, value = mean_kernel(), np.float32(0)
        result, terms = memory(0.0), [memory(float(i)) for i in range(20)]
        streams = [cuda.Stream(NON_BLOCKING) for _ in range(3)]
        event = cuda.Event()
        for i, term in enumerate(terms):
            streams[i % 3].wait_for_event(event)
            mean(kernel, result, [result, term], stream=streams[i % 3])
            event = cuda.Event().record(streams[i % 3])
            value = (value + np.float32(i)) / np.float32(2)
        event.synchronize()
        return [pending(), glance(result), value.item()]


def contexts_apart():
    """Number of copies pending after a wait for one of two devices; a peer copy belongs to both."""
    with device(1) as second:
        there, there_too = memory(2.0), memory()
        with device(0) as first:
            here = memory()
            left = []
            cuda.memset_d32(here, 0, N)
            second.push()
            cuda.memcpy_dtod(there_too, there, 4 * N)
            cuda.Context.synchronize()
            left.append(pending())
            cuda.memset_d32(there, 0x40400000, N)
            cuda.Context.pop()
            # PyCUDA ignores its arguments and passes the current context for both
            result = driver.cuMemcpyPeer(*(ctypes.c_void_p(each) for each in (
                int(here), first.handle, int(there), second.handle)), ctypes.c_size_t(4 * N))
            left.append(pending())
            second.push()
            cuda.Context.synchronize()
            left.append(pending())
            cuda.Context.pop()
            return {"result": result, "left": left, "copied": glance(here)}


def after_milliseconds():
    """Whether a copy is complete immediately, after a wait, and after a delay without a wait."""
    with device():
        source, buffers = memory(2.0), [memory(), memory()]
        seen = []
        started = time.monotonic()
        cuda.memcpy_dtod(buffers[0], source, 4 * N)
        seen.append(pending())
        cuda.Context.synchronize()
        waited = time.monotonic() - started
        seen.append(pending())
        cuda.memcpy_dtod(buffers[1], source, 4 * N)
        deadline = time.monotonic() + 20
        while pending() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(pending())
        return {"pending": seen, "waited": waited, "values": [glance(buffer) for buffer in buffers]}


# ---- kernels ----


def kernels():
    """The mean of three buffers, launched in both forms, and the driver's errors for invalid launches."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=N).astype(np.float32) for _ in range(3)]
    with device(1) as second, device(0) as context:
        second.push()
        far = memory(1.0)
        cuda.Context.pop()
        sources, destination, host = [memory() for _ in arrays], memory(), ones()
        for source, array in zip(sources, arrays, strict=True):
            cuda.memcpy_htod(source, array)
        function = mean_kernel()
        expected = ((arrays[0] + arrays[1]) + arrays[2]) / np.float32(3)
        mean(function, destination, sources)
        cuda.memcpy_dtoh(host, destination)
        equal = [host.tolist() == expected.tolist()]

        mean(function, sources[0], sources)      # in place: the destination is one of the sources
        cuda.memcpy_dtoh(host, sources[0])
        equal.append(host.tolist() == expected.tolist())

        cuda.memcpy_htod(sources[0], arrays[0])
        cuda.memset_d32(destination, 0, N)
        result = launch_one_by_one(destination, sources)
        cuda.memcpy_dtoh(host, destination)
        equal.append(host.tolist() == expected.tolist())

        refused = {
            "beyond the end": error_of(mean, function, destination, sources, N + 1),
            "no source": error_of(mean, function, destination, [0]),
            "another GPU's": error_of(mean, function, destination, [far]),
            "too many threads": error_of(
                function.prepared_call, (1, 1), (1025, 1, 1), *[int(destination)] * 17, N, 1
            ),
            "too few parameters": error_of(function._launch_kernel, (1, 1), (256, 1, 1), b"\0" * 100, 0, None),
            "no kernel of that name": error_of(get_kernel, PTX, "median"),
            "a kernel that C has not": error_of(get_kernel, OTHER_PTX, "other"),
            "no PTX": error_of(get_kernel, b" nonsense\0", "mean"),
            "machine code": error_of(get_kernel, b"\x7fELF\0", "mean"),
        }
        context.enable_peer_access(second)
        refused["another GPU's, enabled"] = error_of(mean, function, destination, [far])
        return {"equal": equal, "result": result, "refused": refused}


def launch_one_by_one(destination, sources):
    """Launch as mean() does, with a list of pointers to the parameters; return the driver's result."""
    function, module = ctypes.c_void_p(), ctypes.c_void_p()
    driver.cuModuleLoadData(ctypes.byref(module), PTX)
    driver.cuModuleGetFunction(ctypes.byref(function), module, b"mean")
    pointers = [int(source) for source in sources] + [0] * (16 - len(sources))
    n, count = ctypes.c_uint32(len(sources)), ctypes.c_uint64(N)
    values = [ctypes.c_uint64(int(destination)), (ctypes.c_uint64 * 16)(*pointers), count, n]
    addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    return driver.cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, None, addresses, None)


def get_kernel(text, name):
    """Return the kernel `name` of a PTX text."""
    return cuda.module_from_buffer(text).get_function(name)


# ---- devices and contexts ----


def devices():
    """Properties of the emulated devices."""
    cuda.init()
    all_of_them = [cuda.Device(i) for i in range(cuda.Device.count())]
    return {
        "count": len(all_of_them),
        "beyond": error_of(cuda.Device, len(all_of_them)),
        "addresses": len({each.pci_bus_id() for each in all_of_them}),
        "same": all(cuda.Device(each.pci_bus_id()) == each for each in all_of_them),
        "peers": [[int(a.can_access_peer(b)) for b in all_of_them] for a in all_of_them],
        "memory": {each.total_memory() >> 20 for each in all_of_them}.pop(),
    }


def contexts():
    """The driver's results if no context is current, or a wrong one."""
    statuses, pointer = {}, ctypes.c_uint64()
    allocate = driver.cuMemAlloc_v2
    size = ctypes.c_size_t(64)
    statuses["before init"] = allocate(ctypes.byref(pointer), size)
    cuda.init()
    statuses["none"] = allocate(ctypes.byref(pointer), size)
    with device() as context:
        statuses["current"] = allocate(ctypes.byref(pointer), size)
        stream = cuda.Stream()

        def elsewhere():
            statuses["in another thread"] = allocate(ctypes.byref(pointer), size)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        again = cuda.Device(0).retain_primary_context()
        statuses["one primary context"] = again.handle == context.handle
        driver.cuDevicePrimaryCtxRelease_v2(0)   # drops the second reference; the first remains
        statuses["released once"] = allocate(ctypes.byref(pointer), size)
        with device(1):
            statuses["stream of another"] = driver.cuStreamSynchronize(ctypes.c_void_p(stream.handle))
        if (child := os.fork()) == 0:
            os._exit(allocate(ctypes.byref(pointer), size))
        statuses["in a fork"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        driver.cuDevicePrimaryCtxRelease_v2(0)
        statuses["released"] = allocate(ctypes.byref(pointer), size)
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(pointer), 0)
    made = cuda.Device(0).make_context()
    handle = ctypes.c_void_p(made.handle)
    allocate(ctypes.byref(pointer), size)
    made.pop()
    statuses["destroyed"] = [driver.cuCtxDestroy_v2(handle), driver.cuCtxPushCurrent_v2(handle)]
    with device():
        free, total = cuda.mem_get_info()
        statuses["left of ended contexts"] = total - free
    write(statuses)
    os._exit(0)                                  # PyCUDA still holds objects of contexts that the driver destroyed


# ---- memory ----


def stray():
    """The driver's results for pointers and sizes outside of allocations."""
    with device():
        buffer, gone = memory(), cuda.mem_alloc(4 * N)
        old = int(gone)
        gone.free()
        host, free = ones(), driver.cuMemFree_v2
        return {
            "beyond the end": error_of(cuda.memcpy_dtoh, host, int(buffer) + 4),
            "before the start": error_of(cuda.memcpy_htod, int(buffer) - 4, host),
            "freed": error_of(cuda.memcpy_dtoh, host, old),
            "null": error_of(cuda.memcpy_htod, 0, host),
            "host memory": error_of(cuda.memcpy_dtod, int(buffer), host.ctypes.data, 4 * N),
            "fill beyond the end": error_of(cuda.memset_d32, buffer, 0, N + 1),
            "within": error_of(cuda.memcpy_dtoh, host[:-1], int(buffer) + 4),
            "freed twice": free(ctypes.c_uint64(old)),
            "freed in the middle": free(ctypes.c_uint64(int(buffer) + 4)),
            "page-locked freed twice": free_twice(),
        }


def free_twice():
    """Free page-locked memory twice and return both results."""
    pointer = ctypes.c_void_p()
    driver.cuMemHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(64), 0)
    return [driver.cuMemFreeHost(pointer), driver.cuMemFreeHost(pointer)]


def touch():
    """Read device memory as if it were host memory; does not return."""
    with device():
        buffer = memory()
        return ctypes.c_float.from_address(int(buffer)).value


def new_memory():
    """Content of uninitialised memory: a small buffer, and the ends of a large one."""
    with device():
        large = cuda.mem_alloc(20 << 20)
        host = np.empty(20 << 20, np.uint8)
        cuda.memcpy_dtoh(host, large)
        return {"small": glance(memory()) == NEW, "ends": [host[0].item(), host[-1].item()]}


def exhaust(mebibytes):
    """Allocate device 0's memory in pieces of 1 MiB until none is left; report the pieces, the error and free MiB."""
    with device():
        pieces = []
        error = "no error"
        while len(pieces) < int(mebibytes) and error == "no error":
            error = error_of(lambda: pieces.append(cuda.mem_alloc(1 << 20)))
        write({"pieces": len(pieces), "error": error, "free": cuda.mem_get_info()[0] >> 20})
        return read()


# ---- other processes ----


def exporter(number="0"):
    """Export a buffer of the numbers 1 to 2 N; then execute orders until "end": own (open it here), read, free."""
    with device(int(number)):
        whole = cuda.mem_alloc(8 * N)
        part = int(whole) + 4 * N
        cuda.memcpy_htod(whole, np.arange(1, 2 * N + 1, dtype=np.float32))
        cuda.Context.synchronize()
        write({"handle": cuda.mem_get_ipc_handle(part).hex(), "same": cuda.mem_get_ipc_handle(whole).hex()})
        while (order := read()) != "end":
            if order == "own":
                write(error_of(cuda.IPCMemoryHandle, cuda.mem_get_ipc_handle(whole)))
            elif order == "read":
                host = ones()
                cuda.memcpy_dtoh(host, part)
                write(host[-1].item())
            elif order == "free":
                whole.free()
                whole = cuda.mem_alloc(8 * N)    # reuses its file descriptor
                write("freed")
        return "ended"


def importer(number="0"):
    """Execute orders from the test until "end", such as opening an IPC handle and reading or writing its memory."""
    with device(int(number)):
        memories = []
        while (order := read()) != "end":
            match order:
                case ["open", handle]:
                    write(error_of(lambda: memories.append(cuda.IPCMemoryHandle(bytearray.fromhex(handle)))))
                case "look":
                    host = np.empty(2 * N, np.float32)
                    cuda.memcpy_dtoh(host, int(memories[-1]))
                    base, size = cuda.mem_get_address_range(int(memories[-1]) + 8)
                    write([host[0].item(), host[-1].item(), base == int(memories[-1]), size])
                case ["write", value, waits]:
                    cuda.memcpy_htod(int(memories[-1]) + 4 * N, ones(value))
                    if waits:
                        cuda.Context.synchronize()
                    write(pending())
                case "mean":
                    buffer = memory()
                    write(error_of(mean, mean_kernel(), buffer, [memories[-1]]))
                case "free":
                    write(driver.cuMemFree_v2(ctypes.c_uint64(int(memories[-1]))))
                case "export":
                    write(error_of(cuda.mem_get_ipc_handle, int(memories[-1])))
                case "used":
                    free, total = cuda.mem_get_info()
                    write(total - free)
                case "same":
                    write(len({int(each) for each in memories}))
                case "close":
                    memories.pop().close()
                    write(len(memories))
        for each in memories:
            each.close()
        return "ended"


def not_emulated():
    """The driver's error for a function that is not emulated."""
    with device():
        return error_of(cuda.Context.get_limit, cuda.limit.STACK_SIZE)


if __name__ == "__main__":
    write(globals()[sys.argv[1]](*sys.argv[2:]))
