"""Places for objects on S3 servers and on the local disk."""

import uuid
from pathlib import Path

import pytest
from s3_server import S3Server

from uapray.objects import Objects, open_objects


@pytest.fixture(params=["local", "moto", pytest.param("seaweedfs", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty URI of each kind."""
    if request.param == "local":
        return str(tmp_path / "store")
    server: S3Server = request.getfixturevalue(f"on_{request.param}")
    bucket = f"uapray-{uuid.uuid4().hex[:12]}"
    server.make_bucket(bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def objects(place: str) -> Objects:
    return open_objects(place)
