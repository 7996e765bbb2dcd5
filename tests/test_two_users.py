"""Another user of the machine can neither read nor disturb a run, nor have it load code, whatever files he prepares.

That strangers cannot disturb the job monitor, which is reached over TCP, is tested in multigpu/mpi/test_tcp.py.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from alexnet.config import ConfigError
from alexnet.native import compiler
from multigpu.device import DeviceError
from tests import two_users
from tests.two_users import User

OWNER, OTHER = 12345, 65534

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes of two users"),
]
needs_compiler = pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")


@pytest.fixture(scope="module")
def owner():
    with User(OWNER) as user:
        yield user


@pytest.fixture(scope="module")
def other():
    with User(OTHER) as user:
        yield user


@pytest.fixture
def shared():
    """A folder as /tmp: all users may create files, and only their owner may remove them. That of pytest is private."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def test_shared_memory_belongs_to_the_user(owner, other):
    handle = owner.call(two_users.allocate, 4096)
    with pytest.raises(DeviceError, match="cannot be opened .Permission denied"):
        other.call(two_users.attach, handle)


def test_socket_of_the_rendezvous_belongs_to_the_user(owner, other, shared):
    assert owner.call(two_users.listen, shared / "runs") == 0o600
    assert other.call(two_users.listed, shared / "runs") == [".rendezvous"]
    with pytest.raises(ConfigError, match="cannot connect to the socket .*: Permission denied"):
        other.call(two_users.connect, shared / "runs")


def test_process_of_another_user_cannot_arrive(owner, other, shared):
    """Even if it can connect, because the owner has changed the mode of the socket."""
    owner.call(two_users.listen_for_all, shared / "runs")
    with pytest.raises(ConfigError, match="a run of another user listens"):
        other.call(two_users.connect, shared / "runs")
    assert owner.call(two_users.accept) is None


def test_rendezvous_of_another_user_is_refused(owner, other, shared):
    other.call(two_users.listen_for_all, shared)
    for join in (two_users.connect, two_users.listen):
        with pytest.raises(ConfigError, match="a run of another user listens at .*; give a folder of your own"):
            owner.call(join, shared)


@pytest.mark.parametrize("target", [None, "elsewhere"])
def test_prepared_folder_of_a_run_is_refused(owner, other, shared, target):
    other.call(two_users.prepare_run, shared, target and shared / target)
    with pytest.raises(ConfigError, match=f"belongs to user {OTHER}, who could change the run; give another name"):
        owner.call(two_users.create_run, shared)


def test_folder_of_a_run_follows_the_umask(owner, shared):
    assert owner.call(two_users.create_run, shared).stat().st_mode & 0o777 == 0o755


@needs_compiler
def test_cache_is_private(owner, other, shared):
    answer, folder, mode, warned = owner.call(two_users.compile_and_load, shared / "cache", shared)
    assert (answer, folder, mode, warned) == (42, shared / "cache", 0o700, [])
    with pytest.raises(PermissionError):
        other.call(two_users.listed, shared / "cache")


@needs_compiler
@pytest.mark.parametrize("prepare", [
    lambda other, path: other.call(two_users.plant, path),
    lambda other, path: (other.call(two_users.plant, path.with_name("evil")),
                         other.call(two_users.link, path.with_name("evil"), path)),
], ids=["folder", "link"])
def test_library_of_another_user_is_not_loaded(owner, other, shared, prepare):
    prepare(other, shared / "cache")
    answer, folder, mode, [warned] = owner.call(two_users.compile_and_load, shared / "cache", shared)
    assert (answer, folder, mode) == (42, shared / f"alexnet-{OWNER}", 0o700)
    assert f"belongs to user {OTHER}, who could place a library there" in warned


@needs_compiler
@pytest.mark.parametrize("prepare", [
    lambda other, path: other.call(two_users.plant, path),
    lambda other, path: other.call(two_users.write, path),
    lambda other, path: other.call(two_users.link, path.with_name("nothing"), path),
    lambda other, path: (other.call(two_users.plant, path.with_name("evil")),
                         other.call(two_users.link, path.with_name("evil"), path)),
], ids=["folder", "file", "link to nothing", "link to a folder"])
def test_prepared_path_below_tmpdir_does_not_disturb(owner, other, shared, prepare):
    prepare(other, shared / f"alexnet-{OWNER}")
    answer, folder, mode, _ = owner.call(two_users.compile_and_load, "/proc/cache", shared)
    assert (answer, folder.parent, mode) == (42, shared, 0o700)
    assert folder.name.startswith(f"alexnet-{OWNER}-") and folder.stat().st_uid == OWNER
