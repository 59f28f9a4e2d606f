"""Fixtures that every test may use: an S3 server, and an AWS environment that belongs to nobody."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

from tests.s3 import S3Server, s3_server
from tests.thrift import examples, halve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# What takes longest, first: what is begun last has no other to run beside.
LONGEST = (
    "test_muconvert", "test_mucluster", "test_backends", "test_cluster", "test_muexport", "test_aggregate",
    "test_multimodal", "test_muproperties", "test_muverify", "test_roundtrip", "test_docs", "test_xarrays",
    "test_oracle", "test_lazy", "test_readers", "test_demo", "test_features", "test_convert", "test_blocks",
    "test_files", "test_cachedstore", "test_migration", "test_versions", "test_commit", "test_requests", "test_verify",
    "test_distributed", "test_access", "test_cli", "test_workspace", "test_transfer", "test_muorder",
)  # fmt: skip


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: half of the time tests wait for servers and timers."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Modules that take long begin first, in CI without every second case; the order within a module stays."""
    config.hook.pytest_deselected(items=halve(items))
    order = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def aws_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees, or uses, the credentials of whoever runs it."""
    absent = tmp_path_factory.mktemp("aws") / "absent"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", str(absent))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(absent))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for all tests of a process: a test makes buckets of its own."""
    with s3_server() as server:
        yield server


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversions and exports of this process put their scratch files."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


# One core of a shared machine is no place for deadlines. "quick" skips shrinking: for a first look.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=examples(100))
settings.register_profile("quick", deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
