"""Pulling guests, with package tools that a test plays."""

import pytest

from vmx.boot import fetch
from vmx.errors import UsageError

APT_CACHE = """#!/bin/sh
echo "$4"
echo "  Depends: linux-image-6.1.0-56-cloud-amd64"
"""
APT_GET = """#!/bin/sh
for last; do :; done
echo "$last" > "${last}_1_amd64.deb"
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/boot" "$3/lib/modules/6.1"
cp "$2" "$3/boot/vmlinuz-6.1"
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Directory of the played tools, which come first in PATH; the cache is empty."""
    directory = tmp_path / "tools"
    directory.mkdir()

    def write(name, script):
        (directory / name).write_text(script)
        (directory / name).chmod(0o755)

    for name, script in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        write(name, script)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write


def test_pull(tools, tmp_path):
    told = []
    assert not any(row.cached for row in fetch.catalogue())
    directory = fetch.pull("debian-cloud", told.append)
    assert directory == tmp_path / "cache/vmx/guests/debian-cloud"
    found = fetch.paths("debian-cloud")
    assert found["kernel"].read_text() == "linux-image-6.1.0-56-cloud-amd64\n"
    assert found["modules_dir"] == directory / "lib/modules/6.1"
    assert told[0].startswith("downloading linux-image-6.1.0-56") and len(told) == 2
    assert [p.name for p in directory.parent.iterdir()] == ["debian-cloud"]
    (row,) = [row for row in fetch.catalogue() if row.cached]
    assert row.name == "debian-cloud" and row.size == len("linux-image-6.1.0-56-cloud-amd64\n")
    tools("apt-get", "#!/bin/sh\nexit 1\n")
    assert fetch.pull("debian-cloud") == directory


@pytest.mark.parametrize(
    ("tool", "script", "message"),
    [
        (
            "apt-get",
            "#!/bin/sh\necho 'E: Unable to locate package' >&2; exit 100\n",
            "Unable to locate.*apt-get update",
        ),
        ("apt-get", "#!/bin/sh\n", "0 files"),
        ("apt-cache", "#!/bin/sh\n", "names no kernel package"),
        ("dpkg-deb", "#!/bin/sh\n", "holds no 'boot/vmlinuz"),
    ],
)
def test_failures_leave_nothing_behind(tools, tmp_path, tool, script, message):
    tools(tool, script)
    with pytest.raises(fetch.FetchError, match=message):
        fetch.pull("debian-cloud")
    assert fetch.paths("debian-cloud") == {}
    assert list((tmp_path / "cache/vmx/guests").iterdir()) == []


def test_without_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    works, reason = fetch.available()
    assert not works and "apt-get" in reason
    with pytest.raises(fetch.FetchError, match="--kernel"):
        fetch.pull("busybox")


def test_unknown_guest():
    with pytest.raises(UsageError, match="debian-cloud"):
        fetch.pull("windows")
