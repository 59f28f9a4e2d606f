"""Keeps secrets out of what the AWS client libraries log.

At DEBUG, botocore logs the headers that it signs, session token and key included,
and the answers of STS. A filter on their loggers (not on the
root, nor on anybody's handlers) writes a mark in place of every secret that this
package used, and of whatever those libraries call one. Records are never
dropped. Must not know what a secret is for.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, override

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIBRARIES = {"boto3", "botocore", "s3transfer", "urllib3"}
_MARK = "***"
_SHORTEST = 8
"""Shorter values are no AWS secrets, and to mark each of them would spoil other text."""
_NAMED = re.compile(
    r"(?i)((?:secret_?access_?key|access_?key_?id|access-?token|security-token|session_?token|web_?identity_?token"
    r"|metadata-token|bearer_token|\btoken|\bsecret|\bpassword)[\"']?\s*(?:[:=]\s*|>)b?[\"']?)([^\s\"'<>,&]+)"
    r"|(\bcredential=)([^\s\"'<>,&/]+)"
)
_known: set[str] = set()


class _Redacting(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if (clean := redacted(text)) != text:
            record.msg, record.args = clean, None
        return True


_filter = _Redacting()


def redacted(text: str) -> str:
    """Return a text with a mark in place of each secret."""
    for secret in list(_known):
        text = text.replace(secret, _MARK)
    return _NAMED.sub(lambda found: f"{found[1] or found[3]}{_MARK}", text)


def fit_to_show(error: BaseException, *, secret: bool = False) -> BaseException | None:
    """Return a client's error, to be the cause of ours, or None where something in it is secret.

    S3 repeats key and token in its refusals, and obstore the refusal in its errors.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = f"{seen} {seen!r} {vars(seen)}"
        if secret or redacted(text) != text:
            return None
        seen = seen.__cause__ or seen.__context__
    return error


def keep_out_of_logs(secrets: Iterable[str | None] = ()) -> None:
    """Mark these secrets, too, in what the libraries log from now on; call it once they are imported."""
    _known.update(secret for secret in secrets if secret and len(secret) >= _SHORTEST)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _LIBRARIES:
            logging.getLogger(name).addFilter(_filter)  # a logger holds a filter once
