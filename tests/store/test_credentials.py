"""Credentials are those of the moment: renewed when they expire, read again when their file is rewritten."""

import json
import os
import shlex
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from s3_server import S3Server

from uapray.errors import StoreError
from uapray.objects import S3Objects

pytestmark = pytest.mark.s3


@pytest.fixture
def objects(on_seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Objects:
    """A bucket, and no credentials in variables."""
    on_seaweedfs.make_bucket(bucket := f"uapray-{uuid.uuid4().hex[:12]}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return S3Objects(bucket)


def test_a_process_is_asked_anew_when_its_credentials_expire(
    objects: S3Objects, seaweedfs: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, config = tmp_path / "answer.json", tmp_path / "config"
    asked = tmp_path / "asked"
    program = f"open({str(asked)!r}, 'a').write('x'); print(open({str(answer)!r}).read())"
    command = shlex.join([sys.executable, "-c", program])
    config.write_text(f"[default]\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    def hand_out(secret: str, lifetime: timedelta) -> None:
        until = datetime.now(UTC) + lifetime
        keys = {"AccessKeyId": seaweedfs.access_key, "SecretAccessKey": secret, "Expiration": until.isoformat()}
        answer.write_text(json.dumps({"Version": 1, **keys}))

    hand_out(seaweedfs.secret_key, timedelta(minutes=1))  # boto3 renews what expires within ten minutes
    objects.write("a", b"1")
    hand_out("expired", timedelta(minutes=1))
    with pytest.raises(StoreError, match="refused the credentials"):
        objects.read("a")
    hand_out(seaweedfs.secret_key, timedelta(hours=1))
    assert objects.read("a") == b"1"
    answers = asked.read_text()
    hand_out("expired", timedelta(hours=1))
    assert objects.read("a") == b"1", "one answer serves until it expires"
    assert asked.read_text() == answers


def test_a_file_that_is_rewritten_is_read_again(
    objects: S3Objects, seaweedfs: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def rewrite(secret: str) -> None:
        draft = tmp_path / "draft"
        draft.write_text(f"[default]\naws_access_key_id = {seaweedfs.access_key}\naws_secret_access_key = {secret}\n")
        os.replace(draft, file)

    rewrite(seaweedfs.secret_key)
    objects.write("a", b"1")
    rewrite("expired")
    with pytest.raises(StoreError, match="refused the credentials"):
        objects.read("a")
    rewrite(seaweedfs.secret_key)
    assert objects.read("a") == b"1"
