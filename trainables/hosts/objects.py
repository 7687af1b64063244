"""Objects of an S3 bucket by address: `s3://bucket/key`.

Server, keys and region come from the same places as in AWS's own tools: `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, a profile or the machine's role. The
first call imports boto3, so local storage works without boto3.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.errors import MissingObjectError, StorageError

_DELETED_AT_ONCE = 1000  # limit of one DeleteObjects call
_ATTEMPTS = 12  # about half a minute with botocore's pauses: enough for a server restart
_FIRST_ATTEMPTS = 3  # about a fifth of a second: a wrong address stays wrong
_KEYS = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_REMEDIES = {
    "NoSuchBucket": "Create the bucket, or name another one.",
    "InvalidBucketName": "Name the bucket: s3://bucket/prefix.",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "Unable to locate credentials": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "AccessDenied": f"{_KEYS} They must allow reading, writing, listing and deleting.",
    "Forbidden": f"{_KEYS} They must allow reading, writing, listing and deleting.",
    "connect": "Check AWS_ENDPOINT_URL and the network.",
}


def check_bucket(location: str) -> None:
    """Check that a bucket exists and accepts the credentials.

    Raises:
        StorageError: The bucket does not exist or refuses the credentials.
    """
    bucket, key = _split(location)
    with _plain_errors(location):
        _client(_FIRST_ATTEMPTS).list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)


def read_object(location: str) -> bytes | None:
    """Content of an object; `None` if the object does not exist.

    Raises:
        StorageError: The bucket cannot be read.
    """
    bucket, key = _split(location)
    client = _client()
    with _plain_errors(location):
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
        except client.exceptions.NoSuchKey:
            return None
        content: bytes = answer["Body"].read()
        return content


def write_object(location: str, content: bytes) -> None:
    """Write or replace an object; readers see the old or the new content.

    Raises:
        StorageError: The bucket cannot be written.
    """
    bucket, key = _split(location)
    with _plain_errors(location):
        _client().put_object(Bucket=bucket, Key=key, Body=content)


def create_object(location: str, content: bytes) -> bool:
    """Create an object; false if the object existed before.

    Servers without conditional writes replace an existing object.

    Raises:
        StorageError: The bucket cannot be written.
    """
    from botocore.exceptions import ClientError

    bucket, key = _split(location)
    with _plain_errors(location):
        try:
            _client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "412"):
                return False
            raise
    return True


def upload_file(path: Path, location: str) -> None:
    """Write or replace an object with a file's content.

    Raises:
        StorageError: The bucket cannot be written.
    """
    bucket, key = _split(location)
    with _plain_errors(location):
        _client().upload_file(str(path), bucket, key)


def download_file(location: str, path: Path) -> None:
    """Write an object's content to a file.

    Raises:
        MissingObjectError: The object is not there.
        StorageError: The object cannot be read.
    """
    from botocore.exceptions import ClientError

    bucket, key = _split(location)
    with _plain_errors(location):
        try:
            _client().download_file(bucket, key, str(path))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                raise MissingObjectError(str(_error(location, str(error)))) from error
            raise


def list_objects(location: str) -> list[str]:
    """Sorted keys of the objects below an address, relative to the address.

    Raises:
        StorageError: The bucket cannot be read.
    """
    return sorted(object_sizes(location))


def object_sizes(location: str) -> dict[str, int]:
    """Sizes in bytes of the objects below an address, by relative key.

    Raises:
        StorageError: The bucket cannot be read.
    """
    bucket, key = _split(location)
    prefix = f"{key}/" if key else ""
    with _plain_errors(location):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {
            entry["Key"].removeprefix(prefix): int(entry["Size"])
            for page in pages
            for entry in page.get("Contents", ())
        }


def delete_objects(location: str, names: Sequence[str]) -> None:
    """Remove objects below an address; objects that are already gone are ignored.

    Raises:
        StorageError: An object cannot be removed.
    """
    bucket, key = _split(location)
    prefix = f"{key}/" if key else ""
    for start in range(0, len(names), _DELETED_AT_ONCE):
        keys = [{"Key": prefix + name} for name in names[start : start + _DELETED_AT_ONCE]]
        with _plain_errors(location):
            answer = _client().delete_objects(
                Bucket=bucket, Delete={"Objects": keys, "Quiet": True}
            )
        for error in answer.get("Errors", ()):
            raise _error(location, f"{error.get('Code')} on {error.get('Key')}")


def _split(location: str) -> tuple[str, str]:
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def _client(attempts: int = _ATTEMPTS) -> Any:
    """Client for the present environment; clients are thread-safe and cached."""
    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    return _build_client(tuple((name, os.environ[name]) for name in names), attempts)


@functools.lru_cache(maxsize=8)
def _build_client(environment: tuple[tuple[str, str], ...], attempts: int) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise StorageError(
            "storage: got an s3:// address without boto3; allowed: a local folder, or boto3 "
            "installed. Install it: pip install 'lorchestra[s3]'"
        ) from error
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        # Servers other than AWS's refuse uploads with a trailing checksum.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # botocore itself reads only AWS_DEFAULT_REGION.
    region = dict(environment).get("AWS_REGION")
    return boto3.session.Session(region_name=region).client("s3", config=config)


@contextmanager
def _plain_errors(location: str) -> Iterator[None]:
    """Convert boto3's errors to `StorageError`, with the address and a remedy."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except (BotoCoreError, HTTPClientError, Boto3Error, ClientError) as error:
        raise _error(location, str(error).rstrip(".")) from error


def _error(location: str, problem: str) -> StorageError:
    remedies = (remedy for sign, remedy in _REMEDIES.items() if sign in problem)
    return StorageError(
        f"{location}: cannot be used ({problem}); allowed: a bucket on an S3 server that answers "
        f"and may be read and written. {next(remedies, 'Check the address and the server.')}"
    )
